"""A chat endpoint on this machine that speaks OpenAI's protocol and answers what a test tells it."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def text_choice(text, tokens=()):
    """A choice of an answer; ``tokens`` are (token, logprob) of its first place."""
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in tokens]
    logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None} if top else None
    message = {"role": "assistant", "content": text}
    return {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}


@contextmanager
def chat_server(answer):
    """Yields (base URL, list of requests). ``answer``: (request, image, question) -> a choice, or an HTTP status."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            picture, words = request["messages"][0]["content"]
            data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            seen.append((request, {name.lower(): value for name, value in self.headers.items()}))
            choice = answer(request, image, words["text"])
            status = choice if isinstance(choice, int) else 200
            usage = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": request["model"], "usage": usage}
            body["choices"] = [] if isinstance(choice, int) else [choice]
            sent = json.dumps(body if status == 200 else {"error": {"message": "told to fail"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
