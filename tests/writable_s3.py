"""A real S3 server on this machine that also takes objects: signed uploads, whole and in parts, and deletions."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree

from tests.local_http import Served
from tests.local_s3 import _error, _Handler, _xml

PARTS = ".parts"


class _Writable(_Handler):
    def __init__(self, *words: Any, connections: set[socket], **named: Any) -> None:
        self._connections = connections
        super().__init__(*words, **named)

    def setup(self) -> None:
        self._connections.add(self.request)
        super().setup()

    def do_PUT(self) -> None:
        query, file, body = self._take()
        if body is None:
            return
        if "uploadId" in query:
            part = self._folder / PARTS / query["uploadId"] / f"{int(query['partNumber']):05d}"
            part.write_bytes(body)
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
        data = _xml(answer)
        self._answer(HTTPStatus.OK, data)
        self.wfile.write(data)

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
def serve_writable_s3(folder: Path, port: int = 0) -> Iterator[Served]:
    """Folders in ``folder`` are the buckets."""
    served, connections = Served(""), set[socket]()
    handler = partial(_Writable, served=served, folder=folder, connections=connections)
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
