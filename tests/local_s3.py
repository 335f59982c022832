"""A real S3 server on this machine: signed requests, listings, ranges, uploads whole and in parts, copies, deletions.

It counts what it sends.
"""

import hashlib
import hmac
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.local_http import Served

KEY, SECRET = "AKIATEST", "a secret"
PARTS = ".parts"


def environment(served: Served) -> dict[str, str]:
    """What leads programs to the server."""
    return {
        "AWS_ENDPOINT_URL": served.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *words, served: Served, folder: Path, connections: set[socket], **named) -> None:
        self._served, self._folder, self._connections = served, folder, connections
        super().__init__(*words, **named)

    def setup(self) -> None:
        self._connections.add(self.request)
        super().setup()

    def do_GET(self) -> None:
        self._served.requests.append(f"{self.command} {self.path}")
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        path = unquote(address.path).lstrip("/")
        file = self._folder / path
        if not self._signed(address.path, query):
            self._answer(HTTPStatus.FORBIDDEN, _error("SignatureDoesNotMatch"))
        elif "list-type" in query and file.is_dir():
            self._answer(HTTPStatus.OK, self._listing(file, query))
        elif not file.is_file():
            bucket = (self._folder / path.partition("/")[0]).is_dir()
            is_bucket = bucket and "/" not in path
            error = _error("NoSuchKey" if bucket else "NoSuchBucket")
            self._answer(HTTPStatus.OK if is_bucket else HTTPStatus.NOT_FOUND, b"" if is_bucket else error)
        elif self._served.failures and self.command == "GET":
            self._served.failures -= 1
            self._answer(HTTPStatus.BAD_REQUEST, _error("RequestTimeTooSkewed"))
        else:
            self._file(file.read_bytes())

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        query, file, body = self._take()
        if body is None:
            return
        if "uploadId" in query:
            part = self._folder / PARTS / query["uploadId"] / f"{int(query['partNumber']):05d}"
            part.write_bytes(body)
        elif source := self.headers.get("x-amz-copy-source"):
            self._put(file, (self._folder / unquote(source).lstrip("/")).read_bytes())
            self._answer(HTTPStatus.OK, _xml("<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"))
            return
        elif not self.path.endswith("/"):
            self._put(file, body)
        self._answer(HTTPStatus.OK, b"")

    def do_POST(self) -> None:
        query, file, body = self._take()
        if body is None:
            return
        if "uploads" in query:
            number = f"upload{len(self._served.requests)}"
            (self._folder / PARTS / number).mkdir(parents=True)
            answer = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
        elif "uploadId" in query:
            parts = self._folder / PARTS / query["uploadId"]
            self._put(file, b"".join(part.read_bytes() for part in sorted(parts.iterdir())))
            shutil.rmtree(parts)
            named = f"<Bucket>{file.relative_to(self._folder).parts[0]}</Bucket><Key>{file.name}</Key><ETag>e</ETag>"
            answer = f"<CompleteMultipartUploadResult>{named}</CompleteMultipartUploadResult>"
        else:
            keys = [node.text or "" for node in ElementTree.fromstring(body).iter() if node.tag.endswith("Key")]
            for key in keys:
                self._delete(file / key)
            answer = "<DeleteResult></DeleteResult>"
        self._answer(HTTPStatus.OK, _xml(answer))

    def do_DELETE(self) -> None:
        _, file, body = self._take()
        if body is not None:
            self._delete(file)
            self._answer(HTTPStatus.NO_CONTENT, b"")

    def _take(self) -> tuple[dict[str, str], Path, bytes | None]:
        """What is asked, of which file, with which body; without one when it has been refused already."""
        self._served.requests.append(f"{self.command} {self.path}")
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        file = self._folder / unquote(address.path).strip("/")
        body = self._body()
        if not self._signed(address.path, query):
            self._answer(HTTPStatus.FORBIDDEN, _error("SignatureDoesNotMatch"))
            return query, file, None
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = _unchunked(body)
        return query, file, body

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _put(self, file: Path, body: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.name}{PARTS}")
        aside.write_bytes(body)
        aside.rename(file)

    def _delete(self, file: Path) -> None:
        """A folder without objects is no more."""
        if file.is_file():
            file.unlink()
        folder = file.parent
        while folder.parent != self._folder and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def _signed(self, path: str, query: dict[str, str]) -> bool:
        """Signature Version 4, computed again from the secret."""
        method, _, rest = self.headers.get("Authorization", "").partition(" ")
        if method != "AWS4-HMAC-SHA256":
            return False
        given = dict(word.strip().split("=", 1) for word in rest.split(","))
        key_id, _, scope = given["Credential"].partition("/")
        if key_id != KEY:
            return False
        names = given["SignedHeaders"].split(";")
        canonical = "\n".join(
            [
                self.command,
                path,
                "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query)),
                *(f"{name}:{self.headers[name].strip()}" for name in names),
                "",
                ";".join(names),
                self.headers["x-amz-content-sha256"],
            ]
        )
        text = f"AWS4-HMAC-SHA256\n{self.headers['x-amz-date']}\n{scope}\n{_sha256(canonical)}"
        key = f"AWS4{SECRET}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(), given["Signature"])

    def _listing(self, bucket: Path, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        files = sorted(file for file in bucket.rglob("*") if file.is_file())
        keys = [(file.relative_to(bucket).as_posix(), file.stat().st_size) for file in files]
        entries, folders = list[str](), dict[str, None]()
        for key, size in keys:
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
                continue
            entries.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>e</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        entries += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        count = f"<KeyCount>{len(entries)}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
        name = f"<Name>{bucket.name}</Name><Prefix>{escape(prefix)}</Prefix>"
        return _xml(f"<ListBucketResult>{name}{count}{''.join(entries)}</ListBucketResult>")

    def _file(self, data: bytes) -> None:
        first, last, wanted = 0, len(data) - 1, self.headers.get("Range")
        if wanted:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop), last) if stop else last
        part = data[first : last + 1]
        named = {"Content-Range": f"bytes {first}-{last}/{len(data)}"} if wanted else {}
        self._answer(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK, part, **named)
        self._served.bytes += len(part) if self.command == "GET" else 0

    def _answer(self, status: HTTPStatus, body: bytes, **named: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"e"', **named}.items():
            self.send_header(name, value)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *values) -> None:
        pass


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _xml(text: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


def _error(code: str) -> bytes:
    return _xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")


def _unchunked(body: bytes) -> bytes:
    """The data of chunks, each after a line with its length in hexadecimal."""
    data = b""
    while body:
        head, _, body = body.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if size == 0:
            break
        data, body = data + body[:size], body[size + 2 :]
    return data


@contextmanager
def serve_s3(folder: Path, port: int = 0) -> Iterator[Served]:
    """Folders in ``folder`` are the buckets."""
    served, connections = Served(""), set[socket]()
    handler = partial(_Handler, served=served, folder=folder, connections=connections)
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.daemon_threads = True
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()
    for connection in connections:  # clients keep them open, and would still be answered
        with suppress(OSError):
            connection.shutdown(SHUT_RDWR)
