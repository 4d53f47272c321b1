"""`penstock run MODEL`, once torch is loaded."""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from actors.core.line import numbered
from pipeline.api import Model
from pipeline.engine.actor_names import SCHEDULER
from pipeline.errors import CheckpointError, PenstockError
from pipeline.generation.chunks import Chunk
from pipeline.generation.folder import check_chat
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.system.sizes import human_bytes
from pipeline.tools.commands.answer import Answer
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.run_lines import closing_lines, opening_lines
from pipeline.tools.trace.perfetto import write_trace
from pipeline.tools.trace.recording import Recording

REFRESH_SECONDS = 0.5


async def run_prompt(options: argparse.Namespace, prompt: str | list[Any], arguments: dict[str, Any]) -> None:
    """Stream the text to stdout; say on stderr what was read, at what rate, and which resource bound the run.

    The prompt is a text, token ids, or with --chat messages.

    When it is interrupted, it prints the same of what was done until then.
    """
    async with contextlib.AsyncExitStack() as stack:
        progress = Progress()
        progress.say("opening the model")
        try:
            model = await stack.enter_async_context(Model.open(options.model, **options.settings))
        finally:
            progress.clear()
        _say(opening_lines(model) + _without_template(options))
        if options.trace is not None:
            await stack.enter_async_context(traced(model, options.trace, "run"))
        answer, before = Answer(), model.statistics()
        try:
            await stream_text(model, _chunks(model, options, prompt, arguments), answer, shown=not options.json)
        except asyncio.CancelledError:
            answer.interrupted = True
            raise
        finally:
            if answer.finish_reason is not None:
                _tell(model, answer, before, arguments, as_json=options.json)


def _without_template(options: argparse.Namespace) -> str:
    """Say that a text is continued though the model answers chats: those made for that continue it oddly."""
    if options.chat is not None or options.raw is not None or options.prompt_ids is not None:
        return ""
    try:
        check_chat(options.model, None)
    except PenstockError:
        return ""
    return (
        "prompt     continued as it is, as --raw TEXT says too; --chat TEXT answers it by the model's chat template\n"
    )


def _chunks(
    model: Model, options: argparse.Namespace, prompt: str | list[Any], arguments: dict[str, Any]
) -> AsyncGenerator[Chunk, None]:
    if options.chat is None or isinstance(prompt, str):
        return model.stream(prompt, **arguments)
    return model.stream_chat(prompt, **arguments)


def _tell(model: Model, answer: Answer, before: ModelStatistics, arguments: dict[str, Any], *, as_json: bool) -> None:
    after, eos_ids = model.statistics(), model.runtime.config.eos_ids
    if as_json:
        print(json.dumps({**answer.as_dict(eos_ids, arguments), "statistics": after.as_dict()}))
    _say("\n" + answer.lines(eos_ids, arguments))
    _say(closing_lines(before, after, time.perf_counter() - answer.started))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def traced(model: Model, path: Path, command: str) -> AsyncGenerator[None, None]:
    """Write a trace of what happens in the `async with`, however that ends."""
    try:
        async with model.recording():
            yield
    finally:
        await asyncio.to_thread(write_trace, path, Recording.of(model.runtime, command))


async def stream_text(
    model: Model,
    stream: AsyncGenerator[Chunk, None],
    answer: Answer,
    *,
    shown: bool = True,
    show: Callable[[Chunk], None] | None = None,
) -> None:
    """Print the text as it comes if it is `shown`, with progress on stderr until the first token, or else the end.

    `show` prints a chunk; by default its text, or its token id where the model has no tokenizer.
    """
    progress, show = Progress(), show or (_show_text if _has_text(model) else _show_ids)
    watching = asyncio.create_task(_watch(model, progress))
    try:
        async with contextlib.aclosing(stream) as chunks:
            async for chunk in chunks:
                answer.take(chunk)
                if shown:
                    watching.cancel()
                    if len(answer.chunks) == 1:
                        progress.clear()
                    show(chunk)
    finally:
        watching.cancel()
        progress.clear()
        if shown and answer.chunks and not answer.text.endswith("\n"):
            print(flush=True)


def _show_text(chunk: Chunk) -> None:
    print(chunk.text, end="", flush=True)


def _show_ids(chunk: Chunk) -> None:
    print(chunk.token_ids[0], end=" ", flush=True)


def _has_text(model: Model) -> bool:
    try:
        return model.tokenizer is not None
    except CheckpointError:
        return False


async def _watch(model: Model, progress: Progress) -> None:
    started = time.perf_counter()
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        said, seconds = model.statistics(), time.perf_counter() - started
        progress.go_on(f"{_where(model, said)}, {human_bytes(said.bytes_read)} read, {seconds:.1f} s")


def _where(model: Model, said: ModelStatistics) -> str:
    """Where the pass stands; nodes of a cluster tell of whole passes only."""
    if not (sections := model.runtime.sections):
        return f"pass {said.passes + 1}"
    groups = sum(len(one.catalog.order) for one in sections)
    counted = (one.line.statistics().actors[numbered(SCHEDULER, one.number)] for one in sections)
    computed = sum(one.messages for one in counted)
    return f"pass {computed // groups + 1}, group {computed % groups}/{groups}"
