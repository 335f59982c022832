"""What every HTTP request passes before it reaches a route: host, key, body size; and every answer's headers."""

import hashlib
import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.serving.errors import ApiError
from ray_jobs.serving.section import ServeSection

PROTECTED = "/v1/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def key_digest(key: str) -> bytes:
    """What the server keeps of an API key: enough to check one, not to use one."""
    return hashlib.sha256(key.encode()).digest()


class Guard:
    """ASGI middleware. ``digest`` is :func:`key_digest` of the API key, None if none is asked for."""

    def __init__(self, app: ASGIApp, section: ServeSection, digest: bytes | None) -> None:
        self.app = app
        self.digest = digest
        self.max_body_bytes = section.limits.max_body_bytes
        # A page from elsewhere can make a browser reach 127.0.0.1 under its own name (DNS rebinding).
        self.hosts = {"localhost", "127.0.0.1", "[::1]", section.host} if section.is_local else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self.app(scope, _replay(body, receive), send_with_headers)

    def _check_host(self, headers: Headers) -> None:
        if self.hosts is not None and headers.get("host", "").rsplit(":", 1)[0].lower() not in self.hosts:
            raise ApiError(403, "This server answers only to this machine's own name.", "host_not_allowed")

    def _check_key(self, path: str, headers: Headers) -> None:
        if self.digest is None or not path.startswith(PROTECTED):
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(key_digest(key.strip()), self.digest):
            raise ApiError(401, "No valid API key; send it as 'Authorization: Bearer <key>'.", "invalid_api_key")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. It is read here because a limit inside a route would come after the memory is taken."""
        too_large = ApiError(413, f"The body is larger than {self.max_body_bytes} bytes.", "body_too_large")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            raise too_large
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return body
            body += message.get("body", b"")
            if len(body) > self.max_body_bytes:
                raise too_large
            if not message.get("more_body", False):
                return body


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def receive_again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
