"""A model hub on this machine, as far as reading a data set goes: lists files, says what they are, sends ranges."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from tests.local_http import FolderHandler, Served

SHA = "0123456789abcdef0123456789abcdef01234567"


class _Hub(FolderHandler):
    """``{folder}/owner/name`` holds the files of ``hf://datasets/owner/name``."""

    def do_GET(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if words[0] == "api":
            self._served.requests.append(self.path)
            self._tell(words[2:4], words[4:])
        else:  # datasets/owner/name/resolve/revision/...
            self.path = "/" + "/".join([*words[1:3], *words[5:]])
            super().do_GET()

    def _tell(self, repository: list[str], rest: list[str]) -> None:
        folder = Path(self.directory, *repository)
        if not folder.is_dir():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif rest[:1] == ["tree"]:
            inside = folder.joinpath(*rest[2:])
            files = inside.rglob("*") if "recursive=true" in self.path.lower() else inside.glob("*")
            self._json([self._entry(folder, file) for file in sorted(files)])
        else:
            self._json({"id": "/".join(repository), "sha": SHA, "siblings": []})

    def _entry(self, folder: Path, file: Path) -> dict:
        kind = {"type": "directory"} if file.is_dir() else {"type": "file", "size": file.stat().st_size}
        return {"path": file.relative_to(folder).as_posix(), "oid": SHA, **kind}

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve_hub(folder: Path) -> Iterator[Served]:
    served = Served("")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, directory=str(folder), served=served)) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()
