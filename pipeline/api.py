"""The model as its users see it: open, generate, stream, look at the statistics, close."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path
from typing import Any, Unpack, overload

from actors.core.trace import Trace
from pipeline.config import Config, Settings
from pipeline.engine.runtime import CLOCK
from pipeline.engine.supervisor import Supervisor
from pipeline.errors import ClosedError, ConfigError, RequestError
from pipeline.generation.build import ModelRuntime, build
from pipeline.generation.folder import naming_files, no_tokenizer, read_defaults, read_tokenizer
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.rehearsal import compute_zeros, rehearse
from pipeline.generation.requests import ARGUMENTS, Call, CallArguments, CallOptions
from pipeline.generation.sequence import MOST_UNREAD, Chunk, Output, RunningSequence
from pipeline.system.hub_cache import BUNDLED, find_checkpoint
from pipeline.system.limits import limits_named
from pipeline.system.signatures import shows
from pipeline.system.threads import see_out
from pipeline.system.written_files import check_writable
from pipeline.text.prompts import Prompt
from pipeline.text.tokenizer import ModelTokenizer, Tokenizer
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import write_report

logger = logging.getLogger("penstock")
FIRST_READS_SECONDS = 0.001
"""For the line to begin its first reads, before a thread with a tokenizer holds up every turn of the event loop."""


class Model:
    """A language model whose weights stream through the device while it computes.

    Made by `Model.open`. Calls may come from many tasks of one event loop, and share its passes.
    """

    def __init__(self, runtime: ModelRuntime, defaults: dict[str, Any]) -> None:
        self._runtime = runtime
        self._defaults = defaults
        self._tokenizer: Tokenizer | None = None
        self._loop = asyncio.get_running_loop()
        self._supervisor = Supervisor(runtime, runtime.admission)
        self._refuses = False
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

    @property
    def defaults(self) -> dict[str, Any]:
        """The sampling defaults that the checkpoint's generation_config.json states."""
        return dict(self._defaults)

    @property
    def tokenizer(self) -> ModelTokenizer:
        """Text to token ids and back, as `generate` does it. Raises CheckpointError where the folder has none."""
        if self._tokenizer is None:
            raise no_tokenizer(self._runtime.folder) if not self._refuses else ClosedError("the model is closed")
        return self._tokenizer

    @property
    def runtime(self) -> ModelRuntime:
        """Everything that the model owns, for measuring and for custom tools."""
        return self._runtime

    @overload
    async def generate(self, prompt: Prompt, *, n: None = None, **arguments: Unpack[CallArguments]) -> Output: ...

    @overload
    async def generate(self, prompt: Prompt, *, n: int, **arguments: Unpack[CallArguments]) -> list[Output]: ...

    @shows(SamplingParameters, CallOptions)
    async def generate(
        self, prompt: Prompt, *, n: int | None = None, **arguments: Unpack[CallArguments]
    ) -> Output | list[Output]:
        """Continue a prompt, which is text or token ids, and return the whole output; with `n`, a list of n samples.

        Arguments are those of `SamplingParameters` and `CallOptions`. Cancelling the call frees everything that it
        held. When a sample fails, so does the call.

        Raises:
            RequestError: the request can never be served as asked, or its next token cannot be chosen or looked up.
            Busy: more than `max_waiting` requests would wait.
            ActorFailed: an actor of the line failed twice in a row, or lost a KV block of this request, or a stage or
                policy of yours raised; later calls work again. Its cause is a ResourceError where a limit of the
                process was reached.
            ClosedError: the model was closed before the request had finished.
        """
        self._runtime.admission.batcher.check_room(1)
        async with self._serving(self._call(prompt, {**arguments, "n": n})) as sequences:
            outputs = [await sequence.output() for sequence in sequences]
        return outputs[0] if n is None else outputs

    @shows(SamplingParameters, CallOptions)
    def stream(self, prompt: Prompt, **arguments: Unpack[CallArguments]) -> AsyncGenerator[Chunk, None]:
        """Continue a prompt as `generate` does, giving one chunk per token as soon as it is known.

        While 64 chunks are not read the request pauses; it goes on, with the same tokens, when some have been. A wait
        for a chunk that is cancelled or timed out ends the stream, as it does every asynchronous generator.

        Arguments, and what a glance at the prompt shows, are refused at the call; what only its tokens show (that a
        text has too many, ids behind the first 16,384) when the first chunk is asked for.
        """
        if arguments.get("n") is not None:
            raise RequestError("n: a stream has one sample; leave it out, or call generate")
        self._runtime.admission.batcher.check_room(1)
        return self._stream(self._call(prompt, arguments))

    def statistics(self) -> ModelStatistics:
        """Return what moved, what waited, and how long; any thread may ask, and waits for a turn of the event loop."""
        return self._supervisor.call(self._runtime.statistics)

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncGenerator[Trace, None]:
        """Record what every actor does, in a cleared trace; one that records anyway is neither cleared nor stopped.

        Raises ConfigError within another recording.
        """
        if self._recording:
            raise ConfigError("recording: another one, or a report, is under way; end it first")
        trace, self._recording = self._runtime.line.trace, True
        if not (goes_on := trace.recording):
            # Operations that have ended before are not traced any more.
            self._supervisor.call(self._runtime.line.statistics)
            trace.clear()
            trace.recording = True
        try:
            yield trace
        finally:
            try:
                # Operations that have ended since are traced here.
                self._supervisor.call(self._runtime.line.statistics)
            finally:
                trace.recording, self._recording = goes_on, False
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

    def _call(self, prompt: Prompt, arguments: Mapping[str, object]) -> Call:
        if self._refuses:
            raise ClosedError("the model is closed")
        return Call(self._runtime, self._tokenizer, self._defaults, prompt, arguments)

    async def _stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        async with self._serving(call) as [sequence], contextlib.aclosing(sequence.chunks()) as chunks:
            sequence.most_unread = MOST_UNREAD
            async for chunk in chunks:
                self._runtime.admission.resume()
                yield chunk

    @contextlib.asynccontextmanager
    async def _serving(self, call: Call) -> AsyncGenerator[list[RunningSequence], None]:
        """Let the samples of a call run for as long as their caller is there."""
        if self._refuses:
            raise ClosedError("the model is closed")
        self._supervisor.check_serves()
        if asyncio.get_running_loop() is not self._loop:
            raise RequestError("the model was opened on another event loop; call it from there, or open another one")
        admission = self._runtime.admission
        with limits_named():
            sequences = await admission.sequences(call.sequences)
        admission.submit(sequences)
        try:
            yield sequences
        finally:
            for sequence in sequences:
                admission.withdraw(sequence)


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

        The first request finds the disk at rest, unless groups that stay are still coming, so that the rows of the
        embedding come at once.
        """
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
                compute_zeros(runtime)  # loads kernels beside the reads
                await asyncio.sleep(FIRST_READS_SECONDS)
                model._tokenizer = await asyncio.to_thread(self._read_tokenizer, runtime.config.vocabulary_size)
                # Groups that stay are more than slots: they go on coming while the first are computed.
                await runtime.source.rested(sum(sum(budget.slots.values()) for budget in runtime.line.budgets))
                await rehearse(runtime)
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
