"""What every request passes: the limit of headers, the name of the host, the key; and a line in the log at its end."""

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import PenstockError, shown
from pipeline.server.errors import ApiError, as_api_error, error_response
from pipeline.server.host_names import HostNames
from pipeline.server.served import bearer

logger = logging.getLogger("penstock")
MOST_HEADER_BYTES = 32 << 10
MOST_BODY_BYTES = 32 << 20
"""More than the longest text that is tokenised, and a million token ids."""
PUBLIC = re.compile(r"/|/page/.*|/health")
"""Paths that tell nothing of the model or its callers, and need no key."""
BODY_SECONDS = 60.0
LONGEST_TOLD = 100
NOTE = "penstock.note"
FORESEEN = (HTTPException, ApiError, PenstockError)
"""Errors that have a status of their own; others are mistakes of the server."""


@dataclass(slots=True)
class Note:
    """What the log tells of a request, beside its path and status; `started` is of `time.perf_counter`."""

    started: float
    prompt_tokens: int = 0
    new_tokens: int = 0
    left: bool = False


class Door:
    """Lets requests in, answers errors, and tells of both. It tells no text and no key."""

    def __init__(self, app: ASGIApp, keys: Collection[str], pages: Collection[str], hosts: HostNames) -> None:
        self._app = app
        self._hosts = hosts
        self._keys = [_digest(key) for key in keys]
        self._pages = frozenset(pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or refuse it."""
        if scope["type"] != "http":
            return
        status = 0
        note = scope[NOTE] = Note(time.perf_counter())

        async def watched_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            refusal = self._refusal(scope)
            app = self._app if refusal is None else error_response(refusal)
            await app(scope, receive, watched_send)
        except Exception as error:
            if status or not isinstance(error, FORESEEN):
                logger.exception("%s %s failed", scope["method"], quote(scope["path"])[:LONGEST_TOLD])
            elif as_api_error(error).status == 500:
                logger.error("%s %s failed: %s", scope["method"], quote(scope["path"])[:LONGEST_TOLD], error)
            if status:
                raise  # the server breaks the connection off
            await error_response(error)(scope, receive, watched_send)
        finally:
            tokens = f", {note.prompt_tokens} + {note.new_tokens} tokens" if note.prompt_tokens else ""
            seconds = time.perf_counter() - note.started
            end, path = "left" if note.left else status, quote(scope["path"])[:LONGEST_TOLD]
            logger.info("%s %s %s%s, %.2f s", scope["method"], path, end, tokens, seconds)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            return ApiError(431, f"headers: need at most {MOST_HEADER_BYTES} bytes, have more")
        headers = Headers(scope=scope)
        if (refusal := self._hosts.refusal(headers.get("host"))) is not None:
            return refusal
        if self._keys and not PUBLIC.fullmatch(scope["path"]):
            digest = _digest(bearer(headers.get("authorization")) or "")
            if not any(hmac.compare_digest(digest, key) for key in self._keys):
                return ApiError(401, "need the API key of this server, as in the header Authorization: Bearer KEY")
        return self._refused_page(headers) if scope["method"] == "POST" else None

    def _refused_page(self, headers: Headers) -> ApiError | None:
        """Refuse work for a page that may not read the answer: a browser asks first only for some kinds of bodies."""
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") not in ("cross-site", "same-site") or {"*", origin} & self._pages:
            return None
        message = f"pages of {shown(origin)} may not ask this server; serve with --cors ORIGIN to let them"
        return ApiError(403, message, code="origin_not_allowed")


def note_of(request: Request) -> Note:
    """The note of a request, for its handler to fill in."""
    note: Note = request.scope[NOTE]
    return note


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises ApiError: 413 for one that is too long, 408 for one that does not come."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BODY_BYTES:
        raise _too_long()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while (message := await request.receive())["type"] != "http.disconnect":
                body += message.get("body", b"")
                if len(body) > MOST_BODY_BYTES:
                    raise _too_long()
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, f"the body is incomplete after {BODY_SECONDS:g} s") from None
    raise ApiError(400, "the body is incomplete")


def _too_long() -> ApiError:
    return ApiError(413, f"need a body of at most {MOST_BODY_BYTES} bytes, have more")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
