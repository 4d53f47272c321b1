"""`penstock convert IN OUT --to FORMAT`."""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.api import Model
from pipeline.checkpoints.written_formats import FORMAT_NAMES, GROUPS, WrittenFormat, written_format
from pipeline.errors import ConfigError, unknown_name
from pipeline.system.event_loop import run_async
from pipeline.system.sizes import human_bytes
from pipeline.system.table import aligned
from pipeline.tools.commands.progress import Progress
from pipeline.tools.convert.bits_per_byte import bits_per_byte, read_text
from pipeline.tools.convert.conversion import Conversion
from pipeline.tools.convert.convert import Change
from pipeline.tools.convert.convert import convert as write_converted


def convert(options: argparse.Namespace) -> None:
    """Write the checkpoint, with progress, and say what it costs: in bytes, in numbers and, with a text, in odds."""
    to, progress, started = _format(options), Progress(), time.perf_counter()
    text = None if options.text is None else read_text(options.text, options.model)

    def begin(conversion: Conversion) -> None:
        progress.clear()
        print(_first_line(options.model, conversion), file=sys.stderr, flush=True)

    def say(done_bytes: int, total_bytes: int) -> None:
        progress.go_on(f"{human_bytes(done_bytes)} of {human_bytes(total_bytes)} converted")

    try:
        changes = write_converted(
            options.model, options.out, to, keep_head=options.keep_head, begin=begin, progress=say
        )
    except OSError as error:
        raise ConfigError(f"{error.filename or options.out}: {error.strerror}") from error
    progress.clear()
    print(f"{options.out}: written in {time.perf_counter() - started:.1f} s\n\n{_table(changes)}", flush=True)
    if text is not None:
        folders = (options.model, options.out)
        before, after = (run_async(_bits(folder, text, options.settings)) for folder in folders)
        print(f"\nbits per byte of {options.text}: {before:.4f} before, {after:.4f} after, {after / before - 1:+.2%}")


def _format(options: argparse.Namespace) -> WrittenFormat:
    if options.to not in FORMAT_NAMES:
        raise ConfigError(f"--to: {unknown_name('format', options.to, FORMAT_NAMES)}")
    if options.group is not None and options.to != "int4":
        raise ConfigError(f"--group: is for --to int4; {options.to} says itself how many columns share a scale")
    group = GROUPS[0] if options.group is None else options.group
    if group not in GROUPS:
        raise ConfigError(f"--group: need one of {', '.join(map(str, GROUPS))}, have {group}")
    return written_format(options.to, group)


def _first_line(folder: Path, conversion: Conversion) -> str:
    before = sum(one.bytes_before for one in conversion.tensors)
    after = sum(one.bytes_after for one in conversion.tensors)
    dense = dict.fromkeys(one.kind for one in conversion.tensors if one.sources and not one.quantised)
    lines = [
        f"{folder}: {human_bytes(before)} become {human_bytes(after)} as {conversion.format_name}, but for "
        f"{', '.join(dense)}, norms and biases; takes about {human_bytes(conversion.memory_bytes)} beside torch"
    ]
    if conversion.ignored:
        lines.append(f"left out, as not used for text: {len(conversion.ignored)} tensors, as {conversion.ignored[0]}")
    return "\n".join(lines)


def _table(changes: Mapping[str, Change]) -> str:
    total = Change(sum(one.bytes_before for one in changes.values()), sum(one.bytes_after for one in changes.values()))
    rows = {**changes, "all": total}
    return aligned(
        {
            ("tensors", ""): [*rows],
            ("before", ""): [human_bytes(one.bytes_before) for one in rows.values()],
            ("after", ""): [human_bytes(one.bytes_after) for one in rows.values()],
            ("", "ratio"): [f"{one.bytes_after / one.bytes_before:.3f}" for one in rows.values()],
            ("relative", "error"): [f"{one.relative_error:.4f}" if one.squares else "" for one in rows.values()],
        }
    )


async def _bits(folder: Path, text: str, settings: dict[str, object]) -> float:
    progress = Progress()

    def say(done_tokens: int, tokens: int) -> None:
        progress.go_on(f"{folder}: {done_tokens} of {tokens} tokens of the text")

    async with Model.open(folder, **settings) as model:  # type: ignore[arg-type]
        bits = await bits_per_byte(model, text, say)
    progress.clear()
    return bits
