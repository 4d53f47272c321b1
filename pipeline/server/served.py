"""The model that is served: it is loading, ready, draining or failed, and has names."""

import asyncio
import contextlib
import hashlib
import importlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

from starlette.requests import Request

from pipeline.errors import ActorFailed, ClosedError
from pipeline.server.errors import ApiError, told, unavailable
from pipeline.server.options import ServerOptions
from pipeline.server.pass_watch import PassWatch
from pipeline.server.request_timings import RequestTimings

if TYPE_CHECKING:
    from pipeline.api import Model

logger = logging.getLogger("penstock")
State = Literal["loading", "ready", "draining", "failed"]
FAILING_SECONDS = 30.0
"""For so long /health tells of a failure: behind a balancer, only new requests can show whether it is over."""
STATES: tuple[str, ...] = get_args(State)


class ServedModel:
    """A model that opens while the port listens already. `opened` is None until then; requests ask `model`.

    `line_failure` is what has failed the last request, until another has got a token.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.names = options.names or (options.model.name,)
        self.started = int(time.time())
        self.draining = False
        self._failure: BaseException | None = None
        self.timings = RequestTimings()
        self.opened: Model | None = None
        self.line_failure: ActorFailed | None = None
        self._watch: PassWatch | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def stuck(self) -> str | None:
        """What the pass under way waits for, if nothing moves."""
        return None if self._watch is None else self._watch.stuck

    @property
    def failure(self) -> BaseException | None:
        """Why it will never serve requests, if it will not."""
        if self._failure is None and self.opened is not None and not self.opened.serves and not self.draining:
            self._failure = ClosedError("the model serves no more requests, as its log says; start the server again")
        return self._failure

    @property
    def state(self) -> State:
        """What /health says."""
        if self.failure is not None:
            return "failed"
        return "draining" if self.draining else "loading" if self.opened is None else "ready"

    @property
    def model(self) -> "Model":
        """The open model. Raises ApiError while there is none to be asked."""
        if (failure := self.failure) is not None:
            raise ApiError(500, f"the model does not serve: {told(failure)}")
        if self.draining or self.opened is None:
            raise unavailable("the server is ending" if self.draining else "the model is loading")
        return self.opened

    @contextlib.contextmanager
    def noting_failures(self) -> Iterator[None]:
        """Keep what fails the request within."""
        try:
            yield
        except ActorFailed as error:
            self.line_failure = error
            asyncio.get_running_loop().call_later(FAILING_SECONDS, self._forget, error)
            raise

    def _forget(self, failure: ActorFailed) -> None:
        if self.line_failure is failure:
            self.line_failure = None

    async def open(self) -> None:
        """Open it. A failure is kept for those who ask."""
        try:
            api = await asyncio.to_thread(importlib.import_module, "pipeline.api")  # brings torch, and takes seconds
            model = await api.Model.open(self.options.model, **self.options.settings)
            try:
                await model.prepare_grammars()  # which would stop the answers of others when one is first asked for
            finally:
                self.opened = model  # also when this is cancelled: it must be closed
            self._watch = PassWatch(model)
            self._watching = asyncio.create_task(self._watch.run())
            logger.info("ready: the model is %s%s", ", ".join(self.names), _together(model))
        except Exception as error:
            self._failure = error

    async def aclose(self) -> None:
        """End all requests with ClosedError, and give everything back."""
        self.draining = True
        if self._watching is not None:
            self._watching.cancel()
        if self.opened is not None:
            await self.opened.aclose()


def _together(model: "Model") -> str:
    """How many requests of a whole context run together, where that is not as many as may."""
    runtime = model.runtime
    room, context, most = runtime.kv_room.tokens, runtime.context_tokens, runtime.settings.max_requests
    if (together := max(1, room // context)) >= most:
        return ""
    return (
        f"; chats that do not say max_tokens ask for a whole context of {context:,} tokens, of which the kv room has "
        f"{together}: so many of them run together (of max_requests={most}), the others wait"
    )


def served_of(request: Request) -> ServedModel:
    """The model that a request asks."""
    served: ServedModel = request.app.state.served
    return served


def scope_of(request: Request, extra: str | None = None) -> str | None:
    """The `cache_scope` of a request: who has the same key, and says the same `extra`, shares KV blocks.

    None, where neither is given, is the common scope of the server.
    """
    key = bearer(request.headers.get("authorization")) if served_of(request).options.api_keys else None
    if key is None and extra is None:
        return None
    return hashlib.sha256(f"{key or ''}\n{extra or ''}".encode()).hexdigest()


def bearer(authorization: str | None) -> str | None:
    """The key that an Authorization header carries."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
