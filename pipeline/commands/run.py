"""`penstock run MODEL --prompt TEXT`."""

import argparse
import asyncio
import contextlib
import json
import textwrap
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from pipeline.api import Model
from pipeline.commands.options import model_settings
from pipeline.commands.progress import Progress
from pipeline.memory import human_bytes
from pipeline.outputs import check_writable
from pipeline.sequences.sequence import Chunk
from pipeline.statistics import ModelStatistics
from pipeline.trace.configuration import describe
from pipeline.trace.perfetto import write_trace
from pipeline.trace.recording import Recording

REFRESH_SECONDS = 0.5
RESOURCES = {"disk_reader": "disk", "gpu_uploader": "host-to-device link", "compute_scheduler": "compute"}


async def run(options: argparse.Namespace) -> None:
    """Stream the text, then say what was read, at what rate, and which resource bound the run."""
    arguments: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "temperature": options.temperature}
    settings = model_settings(options)
    if options.trace is not None:
        check_writable(options.trace)
    async with contextlib.AsyncExitStack() as stack:
        progress = Progress()
        progress.say("opening the model")
        try:
            model = await stack.enter_async_context(Model.open(options.model, **settings))
        finally:
            progress.clear()
        if not options.json:
            print(opening_lines(model), flush=True)
        before, started = model.statistics(), time.perf_counter()
        async with contextlib.nullcontext() if options.trace is None else traced(model, options.trace, "run"):
            chunks = await stream_text(model, options.prompt, arguments, shown=not options.json)
        seconds = time.perf_counter() - started
        if options.json:
            record = {
                "text": "".join(chunk.text for chunk in chunks),
                "token_ids": [token_id for chunk in chunks for token_id in chunk.token_ids],
                "finish_reason": chunks[-1].finish_reason,
                "seconds": seconds,
                "statistics": model.statistics().as_dict(),
            }
            print(json.dumps(record))
        else:
            print(closing_lines(before, model.statistics(), seconds))


@contextlib.asynccontextmanager
async def traced(model: Model, path: Path, command: str) -> AsyncGenerator[None, None]:
    """Write a trace of what happens in the `async with`."""
    async with model.recording() as trace:
        yield
    recording = Recording(trace.spans, trace.counts, describe(model.runtime, command))
    await asyncio.to_thread(write_trace, path, recording)


async def stream_text(model: Model, prompt: str, arguments: dict[str, Any], *, shown: bool = True) -> list[Chunk]:
    """Print the text as it comes if it is `shown`, with progress on stderr until the first token, or else the end."""
    progress = Progress()
    watching = asyncio.create_task(_watch(model, progress))
    chunks: list[Chunk] = []
    try:
        async for chunk in model.stream(prompt, **arguments):
            chunks.append(chunk)
            if shown:
                watching.cancel()
                if len(chunks) == 1:
                    progress.clear()
                print(chunk.text, end="", flush=True)
    finally:
        watching.cancel()
    print(end="\n" if shown else "")
    return chunks


def opening_lines(model: Model) -> str:
    """What is about to run, and under which budget."""
    runtime = model.runtime
    config, needed = runtime.config, runtime.catalog.needed_bytes
    dtype = str(runtime.dtype).removeprefix("torch.")
    defaults = ", ".join(f"{name}={value}" for name, value in model.defaults.items())
    return (
        f"model      {config.family} · {config.layers} layers · {human_bytes(needed)} per pass in "
        f"{len(runtime.catalog.order)} weight groups · computes in {dtype} on {runtime.device.torch_device}\n"
        f"reads      {runtime.reading}\n"
        f"checksums  {runtime.checking}\n"
        f"plan       {textwrap.indent(str(runtime.plan), ' ' * 11).lstrip()}\n"
        f"sampling   {'the checkpoint says ' + defaults if defaults else 'greedy'}, unless an option says otherwise\n"
    )


def closing_lines(before: ModelStatistics, after: ModelStatistics, seconds: float) -> str:
    """What was read, at what rate, and what bound the run."""
    passes = after.passes - before.passes
    read = after.bytes_read - before.bytes_read
    needed = max(1, after.bytes_needed - before.bytes_needed)
    busy = {
        label: (after.busy_seconds[name] - before.busy_seconds.get(name, 0.0)) / seconds
        for name, label in RESOURCES.items()
    }
    binding = max(busy, key=lambda label: busy[label])
    moving = f"at most {after.device_groups_peak} on the device, {after.host_groups_peak} in host memory"
    staying = sum(after.resident_groups.values())
    shares = " · ".join(f"{label} busy {share:.0%}" for label, share in busy.items())
    return (
        f"\npasses     {passes} in {seconds:.1f} s: {seconds / max(passes, 1):.3f} s per pass\n"
        f"read       {human_bytes(read)} at {human_bytes(read / seconds)}/s, {read / needed:.3f} x needed\n"
        f"groups     {moving}{f', beside {staying} that stay' if staying else ''}\n"
        f"time       {shares}\n"
        f"bound by   {binding}"
    )


async def _watch(model: Model, progress: Progress) -> None:
    groups, started = len(model.runtime.catalog.order), time.perf_counter()
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        line, source = model.runtime.line.statistics(), model.runtime.source
        computed = line.actors["compute_scheduler"].messages
        seconds = time.perf_counter() - started
        progress.say(
            f"pass {computed // groups + 1}, group {computed % groups}/{groups}, "
            f"{human_bytes(source.bytes_read)} read, {seconds:.1f} s"
        )
