"""Errors as the OpenAI API words them: ``{"error": {"message", "type", "param", "code"}}``."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered with an error; ``param`` is the field at fault, ``code`` a word for programs."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    def response(self) -> JSONResponse:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        return JSONResponse(body, status_code=self.status, headers=headers)


def bad_request(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code, param)


async def _on_api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 as a 400: the first problem decides ``param`` and ``code``, the message names all."""
    assert isinstance(error, RequestValidationError)
    problems, params = [], []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"] if part != "body"]
        is_field = problem["type"] != "json_invalid" and bool(place)
        params.append(place[0] if is_field else None)
        problems.append(f"{'.'.join(place)}: {problem['msg']}" if is_field else problem["msg"])
    code = {"extra_forbidden": "unknown_parameter", "missing": "missing_parameter", "json_invalid": "invalid_json"}
    return bad_request("; ".join(problems), params[0], code.get(error.errors()[0]["type"], "invalid_value")).response()


async def _on_http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return ApiError(error.status_code, str(error.detail), code).response()


async def _on_crash(_: Request, error: Exception) -> JSONResponse:
    logger.error("request failed", exc_info=error)
    return ApiError(500, "The server failed on this request; its log says why.", "internal_error").response()


def install(app: FastAPI) -> None:
    """Make ``app`` answer every failure in the OpenAI shape, without traces or paths in the answer."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_crash)
