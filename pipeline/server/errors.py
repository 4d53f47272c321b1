"""What becomes of an error: a status, headers, and the object that OpenAI's clients look for."""

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipeline.errors import ActorFailed, Busy, ClosedError, PenstockError, RequestError

RETRY_AFTER_SECONDS = 5
NO_PATH = "no such path: those of OpenAI begin with /v1, and /openapi.json lists all"
PARAMETER = re.compile(r"([a-z_]+)(\[\d+\])?[.:]")
TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    421: "misdirected_request",
    429: "rate_limit_exceeded",
    431: "headers_too_large",
    503: "service_unavailable",
}


class ApiError(Exception):
    """An error of the server itself, with the status that it has."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})


def unavailable(message: str) -> ApiError:
    """The model does not serve now, and may soon."""
    return ApiError(503, message)


def as_api_error(error: BaseException) -> ApiError:
    """The same error with a status. What is no fault of the request says so to clients that would try again."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):  # of Starlette's routes
        message = NO_PATH if error.status_code == 404 else error.detail
        return ApiError(error.status_code, message, headers=error.headers)
    message = str(error)
    if isinstance(error, RequestError):
        named = PARAMETER.match(message)
        return ApiError(400, message, param=named[1] if named else None)
    if isinstance(error, Busy):
        return ApiError(429, message)
    if isinstance(error, ClosedError):
        return unavailable(told(error))
    if isinstance(error, PenstockError):
        return ApiError(500, told(error))
    return ApiError(500, "the server made a mistake, which its log describes")


def told(error: BaseException) -> str:
    """What has failed, for those who ask. What caused it names files and folders of the machine: the log has that."""
    if isinstance(error, ClosedError) and error.__cause__ is None:
        return str(error)
    return f"{_without_paths(error)}; the log of the server says more"


def _without_paths(error: BaseException) -> str:
    if isinstance(error, ActorFailed):
        return f"{error.place}: {_without_paths(error.__cause__ or RuntimeError())}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{type(error).__name__}: {os.strerror(error.errno)}"
    return type(error).__name__


def envelope(error: BaseException) -> bytes:
    """The JSON document that tells of an error, in an answer or in a frame of a stream."""
    known = as_api_error(error)
    said: dict[str, Any] = {
        "message": str(known),
        "type": TYPES.get(known.status, "invalid_request_error" if known.status < 500 else "server_error"),
        "param": known.param,
        "code": known.code or CODES.get(known.status),
    }
    return msgspec.json.encode({"error": said})


def error_response(error: BaseException) -> Response:
    """The answer to a request that failed before its answer had begun."""
    known = as_api_error(error)
    headers = dict(known.headers)
    if known.status in (429, 503):
        headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
    if known.status == 500:
        headers.setdefault("x-should-retry", "false")  # the client of OpenAI would ask three times
    if known.status == 401:
        headers.setdefault("www-authenticate", "Bearer")
    return Response(envelope(known), known.status, headers, "application/json")
