"""Errors as the OpenAI API words them: ``{"error": {"message", "type", "param", "code"}}``."""

import logging
from typing import Any

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


CODES = {"extra_forbidden": "unknown_parameter", "missing": "missing_parameter", "json_invalid": "invalid_json"}
NO_OBJECT = "The body must be a JSON object, sent with 'Content-Type: application/json'"
SHOWN = 60


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 as a 400: the first problem decides ``param`` and ``code``, the message names all."""
    assert isinstance(error, RequestValidationError)
    problems = [_told(problem) for problem in error.errors()]
    code = CODES.get(error.errors()[0]["type"], "invalid_value")
    return bad_request("; ".join(message for _, message in problems), problems[0][0], code).response()


def _told(problem: Any) -> tuple[str | None, str]:
    """The field at fault, None for the body as a whole, and what is wrong with it and was given."""
    place = [str(part) for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        where, why = problem["loc"][-1], problem.get("ctx", {}).get("error", "")
        return None, f"The body is no JSON: {why} at character {where}"
    if not place:
        return None, NO_OBJECT
    name, kind = ".".join(place), problem["type"]
    if kind == "extra_forbidden":
        return place[0], f"{name}: this server knows no such parameter; leave it out"
    # A lone surrogate can be said in JSON, but not in UTF-8.
    shown = str(problem["input"])[:SHOWN].encode(errors="replace").decode()
    return place[0], f"{name}: {problem['msg']}" + ("" if kind == "missing" else f"; given {shown!r}")


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
