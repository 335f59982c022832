"""A real HTTP server on this machine that serves a folder, with ranges, and counts what it sends."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    url: str
    bytes: int = 0
    requests: list[str] = field(default_factory=list)
    failures: int = 0
    """How many of the next requests for a file are answered with an error."""


class FolderHandler(SimpleHTTPRequestHandler):
    def __init__(self, *words, served: Served, **named) -> None:
        self._served = served
        super().__init__(*words, **named)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        self._served.requests.append(self.path)
        if path.is_file() and self._served.failures:
            self._served.failures -= 1
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        if not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        wanted = self.headers.get("Range")
        if wanted:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first = int(start) if start else len(data) - int(stop)
            last = min(int(stop), last) if start and stop else last
        self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[first : last + 1])
        self._served.bytes += last - first + 1

    def log_message(self, format: str, *values) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    served = Served("")
    handler = partial(FolderHandler, directory=str(folder), served=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()
