"""A real HTTP server that speaks enough of OpenAI's chat completions for captioning, and misbehaves when asked."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

REFUSALS = {
    "sorry": {"content": "I'm sorry, but I can't describe this image."},
    "refusal": {"content": None, "refusal": "not this one"},
    "filter": {"content": "a half"},
    "empty": {"content": "  "},
}
GARBLED = {
    "half": '{"id": "x", "object": "chat.compl',
    "nothing": "",
    "html": "<html>busy</html>",
    "list": "[1]",
    "no message": '{"choices": [{"index": 0, "finish_reason": "stop", "message": null}]}',
    "number": '{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": 7}}]}',
}
"""What comes with status 200 and is no chat completion."""


@dataclass
class Call:
    """One request as it arrived."""

    text: str
    colour: str | None
    key: str | None
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


@dataclass
class ChatServer:
    """``script`` is used up call by call (429, 500, 400, slow, sorry, refusal, filter, empty, long, parts, ok, and
    what GARBLED has), then all is well. An image is described by its mean colour, a text is answered by itself with
    "not " before it.
    """

    base_url: str = ""
    script: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    key: str | None = None
    model: str = "tiny-vlm"
    hold: int | None = None
    """Calls after this many wait until the server stops."""
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | str]:
        with self.lock:
            self.calls.append(call)
            action = self.script.pop(0) if self.script else "ok"
            held = self.hold is not None and len(self.calls) > self.hold
        if held:
            self.stopping.wait(60)
        if self.key is not None and call.key != f"Bearer {self.key}":
            return 401, {}, {"error": {"message": f"wrong key {call.key}"}}
        if call.body["model"] != self.model:
            return 404, {}, {"error": {"message": "no such model"}}
        if action == "slow":
            time.sleep(1.5)
        if action.isdigit():
            headers = {"Retry-After": "1"} if action == "429" else {}
            return int(action), headers, {"error": {"message": f"scripted {action}"}}
        if action in GARBLED:
            return 200, {}, GARBLED[action]
        said = REFUSALS.get(action, {"content": f"{call.colour} square" if call.colour else f"not {call.text}"})
        if action == "parts":
            said = {"content": [{"type": "text", "text": said["content"]}]}
        finish = {"filter": "content_filter", "long": "length"}.get(action, "stop")
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **said}}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": self.model, "choices": [choice]}
        return 200, {}, {**reply, "usage": usage}


def colour_of(data: bytes) -> str:
    """Mean colour of an image in steps of four grey levels, so that JPEG's rounding does not show."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)
    return "-".join(str(round(value / 4)) for value in pixels.mean(axis=(0, 1)))


@contextmanager
def chat_server(**settings: Any) -> Iterator[ChatServer]:
    """A running server on a free port of this machine."""
    state = ChatServer(**settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = body["messages"][0]["content"]
            parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
            images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            colour = colour_of(base64.b64decode(images[0].partition(",")[2])) if images else None
            text = next(part["text"] for part in parts if part["type"] == "text")
            status, headers, reply = state.answer(Call(text, colour, self.headers.get("Authorization"), body))
            data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Type": "application/json"}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has given up, as some tests want it to

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
