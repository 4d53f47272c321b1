"""The model as its users see it: open, look at the statistics, record, close. What it answers is in `Answering`."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import Any, Unpack, cast

from actors.core.trace import Trace
from pipeline.answering import Answering
from pipeline.config import Config, Settings
from pipeline.engine.runtime import CLOCK
from pipeline.errors import ClosedError, ConfigError, RequestError
from pipeline.generation.build import build
from pipeline.generation.folder import naming_files, read_defaults, read_tokenizer
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.generation.rehearsal import compute_zeros, rehearse
from pipeline.generation.requests import ARGUMENTS, CallOptions
from pipeline.generation.sessions import Session, Sessions
from pipeline.system.hub_cache import BUNDLED, find_checkpoint
from pipeline.system.limits import limits_named
from pipeline.system.signatures import shows
from pipeline.system.threads import see_out
from pipeline.system.written_files import check_writable
from pipeline.text.chat import Messages, plain_messages
from pipeline.text.prompts import TokenIds, id_slices
from pipeline.text.tokenizer import Tokenizer
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import write_report

logger = logging.getLogger("penstock")
FIRST_READS_SECONDS = 0.001
"""For the line to begin its first reads, before a thread with a tokenizer holds up every turn of the event loop."""


class Model(Answering):
    """A language model whose weights stream through the device while it computes.

    Made by `Model.open`. Calls may come from many tasks of one event loop, and share its passes.
    """

    def __init__(self, runtime: ModelRuntime, defaults: dict[str, Any]) -> None:
        super().__init__(runtime, defaults)
        self._recording = False

    @classmethod
    @shows(Config)
    def open(
        cls, path: str | Path | None = None, *, trace: Trace | None = None, **settings: Unpack[Settings]
    ) -> "Opening":
        """Open a checkpoint folder, or a model of the local Hugging Face cache by its id; by default the bundled one.

        Use it as `async with Model.open(path) as model`, or `model = await Model.open(path)` and `aclose()` later.
        `settings` are those of `Config`. A `Trace` given here collects the spans of all actors. The model is open when
        its first groups wait to be computed: as many as there are slots for, or as a stage of yours has let through.
        What fails in the line meanwhile is logged; the first request runs it anew.

        Raises ConfigError, CheckpointError or, where the process is out of memory, descriptors or threads,
        ResourceError, each before any request.
        """
        if not isinstance(path, str | Path | None):
            raise ConfigError(f"path: need the path of a checkpoint folder, have {path!r}")
        if not isinstance(trace, Trace | None):
            raise ConfigError(f"trace: need a Trace, have {trace!r}")
        return Opening(Path(path) if path is not None else BUNDLED, Config.from_arguments(settings, ARGUMENTS), trace)

    def statistics(self) -> ModelStatistics:
        """Return what moved, what waited, and how long; any thread may ask, and waits for a turn of the event loop."""
        return self._supervisor.call(self._runtime.statistics)

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncGenerator[Trace, None]:
        """Record what every actor does, in a cleared trace; one that records already is neither cleared nor stopped.

        Of a model on a cluster the trace is filled when the recording ends, by the clock of this process.

        Raises ConfigError within another recording, and at its end PenstockError where a node has died meanwhile.
        """
        if self._recording:
            raise ConfigError("recording: another one, or a report, is under way; end it first")
        trace, self._recording = self._runtime.trace, True
        try:
            async with contextlib.AsyncExitStack() as stack:
                if not trace.recording:
                    # Operations that have ended before are not traced any more.
                    self._supervisor.call(self._runtime.statistics)
                    await stack.enter_async_context(self._runtime.recording())
                # Operations that have ended since are traced here.
                stack.callback(self._supervisor.call, self._runtime.statistics)
                yield trace
        finally:
            self._recording = False
            if trace.dropped:
                logger.warning("the trace is full: its oldest %d spans and counts are gone", trace.dropped)

    @contextlib.asynccontextmanager
    async def report(self, path: str | Path) -> AsyncGenerator[None, None]:
        """Record what happens in the `async with`, and write it as one HTML page: what overlapped, and what bound it.

        Where the body raises, nothing is written. Raises ConfigError when the page cannot be written there.
        """
        path = _absolute(Path(path))
        check_writable(path)
        started = CLOCK()
        async with self.recording():
            yield
        recording = Recording.of(self._runtime, "Model.report")
        await asyncio.to_thread(write_report, path, recording.since(started))

    async def save_session(
        self,
        path: str | Path,
        token_ids: TokenIds,
        *,
        messages: Messages = (),
        cache_scope: str | None = None,
    ) -> int:
        """Write to one file what is kept of a conversation: KV blocks, recurrent states, its tokens and its messages.

        `token_ids` are those of the last prompt and its answer. Its calls have named the same `cache_scope`, or the
        model was opened with `share_prefixes`. Returns how many of the tokens `load_session` can let be found, in
        another process too. A file that is there is replaced when all is written.

        Raises RequestError for what is no token, or no scope, ConfigError and OSError where the file cannot be written.
        """
        scope = self._session_scope(cache_scope)
        ids = [one for part in id_slices(token_ids, self._runtime.config.vocabulary_size, "token_ids") for one in part]
        with self._until_closed("saved"):
            return await Sessions(self._runtime, scope).save(_absolute(Path(path)), ids, plain_messages(messages))

    async def load_session(self, path: str | Path, *, cache_scope: str | None = None) -> Session:
        """Put what a session file keeps into the cache: calls of this `cache_scope` that begin alike go on from there.

        The cache takes as many tokens as it has room for, and what is not used gives way like anything that is cached.
        Raises RequestError for a file that another model has written, or that is damaged.
        """
        scope = self._session_scope(cache_scope)
        with self._until_closed("loaded"):
            return await Sessions(self._runtime, scope).load(_absolute(Path(path)))

    @contextlib.contextmanager
    def _until_closed(self, done: str) -> Iterator[None]:
        """Raise ClosedError for any error of a model that was closed meanwhile."""
        try:
            yield
        except Exception as error:
            if self._refuses:
                raise ClosedError(f"the model was closed before the session was {done}") from error
            raise

    def _session_scope(self, cache_scope: str | None) -> bytes:
        if self._refuses:
            raise ClosedError("the model is closed")
        if self._runtime.settings.cluster is not None:
            raise RequestError("session: KV blocks of a model on a cluster are on its nodes; keep the messages instead")
        scope = CallOptions(cache_scope=cache_scope).scope(self._runtime.settings.share_prefixes)
        if scope is None:
            raise RequestError(
                "cache_scope: need a name, as no other call finds what calls without one keep; or open the model with "
                "share_prefixes=True"
            )
        return scope

    async def aclose(self, *, drain: bool = False) -> None:
        """Stop the line and give everything back. Requests that still run end with ClosedError, as new ones do.

        With `drain`, those that run or wait are finished first; another call without it ends them at once. Every call
        waits for the same closing, which goes on when a call is cancelled; one cancelled while it drains only refuses
        new requests.
        """
        self._refuses = True
        await self._supervisor.aclose(drain=drain)
        self._tokenizer = None

    async def __aenter__(self) -> "Model":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


class Opening:
    """A model about to be opened: await it, or enter it with `async with`."""

    def __init__(self, folder: Path, config: Config, trace: Trace | None) -> None:
        self._folder, self._name = _absolute(folder), str(folder)
        self._config = config
        self._trace = trace
        self._model: Model | None = None

    def __await__(self) -> Generator[Any, None, Model]:
        return self._open().__await__()

    async def __aenter__(self) -> Model:
        self._model = await self._open()
        return self._model

    async def __aexit__(self, *error: object) -> None:
        if self._model is not None:
            await self._model.aclose()

    async def _open(self) -> Model:
        """Build the line, and let it read what there is room for while the tokenizer is read on another thread.

        It returns when the disk is at rest, unless groups that stay are still coming: so the first request gets the
        rows of the embedding at once.
        """
        if self._config.cluster is not None:
            return await self._open_on_cluster()
        with limits_named():
            building = asyncio.ensure_future(asyncio.to_thread(self._build))
            try:
                runtime, defaults = await asyncio.shield(building)
            except asyncio.CancelledError:
                # The thread cannot be stopped; what it opens must still be closed, however often we are cancelled.
                await see_out(_close_when_built(building))
                raise
            model = Model(runtime, defaults)
            try:
                for section in runtime.sections:
                    compute_zeros(section)  # loads kernels beside the reads
                await asyncio.sleep(FIRST_READS_SECONDS)
                model._tokenizer = await asyncio.to_thread(self._read_tokenizer, runtime.config.vocabulary_size)
                # Groups that stay are more than slots: they go on coming while the first are computed.
                await runtime.source.rested(sum(one.slots for one in runtime.sections))
                await rehearse(runtime)
            except BaseException:
                await see_out(model.aclose())
                raise
            return model

    async def _open_on_cluster(self) -> Model:
        """Open sections on the nodes of a cluster; of the model only the tokenizer is read here."""
        from pipeline.cluster.placing import require_ray

        require_ray()
        from pipeline.cluster.open_on_cluster import open_on_cluster

        if self._trace is not None:
            raise ConfigError("trace: the lines of a model on a cluster run on its nodes; leave trace out, or cluster")
        self._folder = await asyncio.to_thread(find_checkpoint, self._folder, self._name)
        with naming_files(self._folder):
            defaults = read_defaults(self._folder)
            runtime = await open_on_cluster(self._folder, self._config)
        model = Model(cast("ModelRuntime", runtime), defaults)  # which has all that answering asks for
        try:
            model._tokenizer = await asyncio.to_thread(self._read_tokenizer, runtime.config.vocabulary_size)
        except BaseException:
            await see_out(model.aclose())
            raise
        return model

    def _build(self) -> tuple[ModelRuntime, dict[str, Any]]:
        self._folder = find_checkpoint(self._folder, self._name)
        with naming_files(self._folder):
            defaults = read_defaults(self._folder)
            return build(self._folder, self._config, self._trace), defaults

    def _read_tokenizer(self, vocabulary_size: int) -> Tokenizer | None:
        with naming_files(self._folder):
            return read_tokenizer(self._folder, vocabulary_size)


def _absolute(path: Path) -> Path:
    """The program may change its working folder later. Where that is gone by now, nothing will be found there."""
    with contextlib.suppress(FileNotFoundError):
        return path.absolute()
    return path


async def _close_when_built(building: "asyncio.Future[tuple[ModelRuntime, dict[str, Any]]]") -> None:
    with contextlib.suppress(Exception):
        await (await building)[0].aclose()
