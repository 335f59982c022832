"""A Google Cloud Storage server on this machine: metadata, listings, ranges, uploads, rewrites, deletions; no keys."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.local_http import Served

TIME = "2026-01-01T00:00:00.000Z"


def environment(served: Served) -> dict[str, str]:
    """What leads programs to the server."""
    return {"STORAGE_EMULATOR_HOST": served.url}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *words, served: Served, folder: Path, uploads: dict[str, tuple[Path, bytes]], **named) -> None:
        self._served, self._folder, self._uploads = served, folder, uploads
        super().__init__(*words, **named)

    def do_GET(self) -> None:
        file, query = self._asked()
        bucket = self._folder / file.relative_to(self._folder).parts[0]
        if file == bucket and not urlsplit(self.path).path.endswith("/o"):
            self._tell({"kind": "storage#bucket", "name": bucket.name} if bucket.is_dir() else None)
        elif file == bucket:
            self._tell(_listing(bucket, query) if bucket.is_dir() else None)
        elif not file.is_file():
            self._tell(None)
        elif query.get("alt") != "media" and self.path.startswith("/storage/v1/"):
            self._tell(self._resource(file))
        elif self._served.failures:
            self._served.failures -= 1
            self._answer(HTTPStatus.BAD_REQUEST, b"{}")
        else:
            self._file(file.read_bytes())

    def do_POST(self) -> None:
        file, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "upload_id" in query:
            self._part(query["upload_id"], body)
        elif query.get("uploadType") == "resumable":
            number = f"upload{len(self._served.requests)}"
            self._uploads[number] = file / json.loads(body)["name"], b""
            self._answer(HTTPStatus.OK, b"{}", Location=f"{self._served.url}/upload?upload_id={number}")
        elif query.get("uploadType") == "multipart":
            boundary = b"--" + self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
            end = body.removeprefix(boundary).partition(b"\n")[0] + b"\n"  # some clients leave the \r out
            about, media = (part.partition(2 * end)[2].removesuffix(end) for part in body.split(boundary)[1:3])
            target = file / json.loads(about)["name"]
            _put(target, media)
            self._tell(self._resource(target))
        elif not file.is_file():
            self._tell(None)
        else:
            self._copy(file)

    def _copy(self, file: Path) -> None:
        """``.../o/source/rewriteTo/b/bucket/o/target``, or ``.../b/bucket/o/source/moveTo/o/target``."""
        words = urlsplit(self.path).path.split("/")
        moved = "moveTo" in words
        bucket = words[4] if moved else words[words.index("rewriteTo") + 2]
        target = self._folder / unquote(bucket) / unquote(words[-1])
        _put(target, file.read_bytes())
        resource = self._resource(target)
        if moved:
            file.unlink()
            self._tell(resource)
        else:
            size = {"totalBytesRewritten": resource["size"], "objectSize": resource["size"]}
            self._tell({"kind": "storage#rewriteResponse", "done": True, "resource": resource, **size})

    def _part(self, number: str, body: bytes) -> None:
        """A part of an upload, the last one where the range says how long the whole is."""
        file, before = self._uploads[number]
        self._uploads[number] = file, before + body
        if self.headers["Content-Range"].endswith("/*"):
            last = len(before + body) - 1
            self._answer(HTTPStatus.PERMANENT_REDIRECT, b"", Range=f"bytes=0-{last}")
            return
        _put(file, before + body)
        self._tell(self._resource(file))

    def do_DELETE(self) -> None:
        file, _ = self._asked()
        if file.is_file():
            file.unlink()
            self._answer(HTTPStatus.NO_CONTENT, b"")
        else:
            self._tell(None)

    def _asked(self) -> tuple[Path, dict[str, str]]:
        """Which file or bucket the request is about, and its query."""
        self._served.requests.append(f"{self.command} {self.path}")
        address = urlsplit(self.path)
        path = address.path
        for start in ("/storage/v1/b/", "/upload/storage/v1/b/", "/download/storage/v1/b/"):
            if path.startswith(start):
                bucket, _, rest = path.removeprefix(start).partition("/")
                key = rest.removeprefix("o").partition("/rewriteTo/")[0].partition("/moveTo/")[0]
                path = f"/{bucket}{key}"
        return self._folder / unquote(path).strip("/"), dict(parse_qsl(address.query, keep_blank_values=True))

    def _resource(self, file: Path) -> dict[str, Any]:
        bucket, *key = file.relative_to(self._folder).parts
        return _object(bucket, "/".join(key), file.stat().st_size)

    def _file(self, data: bytes) -> None:
        first, last, wanted = 0, len(data) - 1, self.headers.get("Range")
        if wanted:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop), last) if stop else last
        named = {"Content-Range": f"bytes {first}-{last}/{len(data)}"} if wanted else {}
        part = data[first : last + 1]
        self._answer(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK, part, **named)
        self._served.bytes += len(part)

    def _tell(self, value: dict[str, Any] | None) -> None:
        if value is None:
            missing = {"error": {"code": 404, "message": "there is no such thing", "errors": [{"reason": "notFound"}]}}
            self._answer(HTTPStatus.NOT_FOUND, json.dumps(missing).encode())
        else:
            self._answer(HTTPStatus.OK, json.dumps(value).encode())

    def _answer(self, status: HTTPStatus, body: bytes, **named: str) -> None:
        self.send_response(status)
        about = {"Content-Length": str(len(body)), "Content-Type": "application/json", "x-goog-generation": "1"}
        for name, value in {**about, **named}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):  # a client that knows enough hangs up
            self.wfile.write(body)

    def log_message(self, format: str, *values) -> None:
        pass


def _object(bucket: str, key: str, size: int) -> dict[str, Any]:
    told = {"kind": "storage#object", "bucket": bucket, "name": key, "size": str(size), "generation": "1"}
    return {**told, "metageneration": "1", "timeCreated": TIME, "updated": TIME, "storageClass": "STANDARD"}


def _listing(bucket: Path, query: dict[str, str]) -> dict[str, Any]:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    items, folders = list[dict[str, Any]](), dict[str, None]()
    for file in sorted(file for file in bucket.rglob("*") if file.is_file()):
        key = file.relative_to(bucket).as_posix()
        rest = key.removeprefix(prefix)
        if key.startswith(prefix) and delimiter and delimiter in rest:
            folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
        elif key.startswith(prefix):
            items.append(_object(bucket.name, key, file.stat().st_size))
    return {"kind": "storage#objects", "items": items, "prefixes": list(folders)}


def _put(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}")
    aside.write_bytes(data)
    aside.rename(file)


@contextmanager
def serve_gcs(folder: Path) -> Iterator[Served]:
    """Folders in ``folder`` are the buckets."""
    served = Served("")
    handler = partial(_Handler, served=served, folder=folder, uploads={})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()
