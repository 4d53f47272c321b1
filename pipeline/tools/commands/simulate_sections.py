"""`penstock simulate --sections N`."""

import argparse
import dataclasses
from collections.abc import Sequence

from pipeline.engine.settings import within
from pipeline.errors import ConfigError
from pipeline.system.table import print_json, rows_aligned
from pipeline.system.written_files import check_writable, writing
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.simulate import refuse_others
from pipeline.tools.commands.simulate_timings import MS, RATES, check_number, timings_from
from pipeline.tools.commands.values import option_of
from pipeline.tools.simulation.compared_sections import ComparedSections, compare_sections
from pipeline.tools.simulation.section_chart import section_picture
from pipeline.tools.simulation.timings import LayerTimings

TIMES = ("attn_ms", "ffn_ms", "attn_io_ms", "ffn_io_ms", "disk_attn_ms", "disk_ffn_ms", "layers", "jitter", "seed")
SETTINGS = ("gpu_groups", "host_groups", "queue", "micro_batches")
SECTIONS = ("sections", "hop_seconds", "stays", "shared_disk")
OWN = (*SECTIONS, *TIMES, *SETTINGS, *RATES, "memory_gbps", "model", "json", "picture")
MOST = 1 << 16
MOST_LAYERS = 50_000
"""Of all sections in all: as many are some minutes."""


def simulate_sections(options: argparse.Namespace) -> None:
    """Simulate 1, 2, 4, ... sections, and print a table or JSON."""
    refuse_others(options, OWN, "sections")
    for name in ("sections", *SETTINGS, "layers"):
        within(option_of(name), getattr(options, name), 1, MOST, or_none=True)
    check_number(options, "hop_seconds")
    check_number(options, "stays")
    if options.stays > 1:
        raise ConfigError(f"--stays: need a share from 0 to 1, have {options.stays:g}")
    if options.picture is not None:
        check_writable(options.picture)
    timings = timings_from(options)
    if timings.layers * options.sections > MOST_LAYERS:
        have = f"{timings.layers} x {options.sections}"
        raise ConfigError(f"--layers: need at most {MOST_LAYERS} times --sections, have {have}")
    if options.sections > timings.layers:
        have = f"{options.sections} for {timings.layers} layers"
        raise ConfigError(f"--sections: need at most one for each layer, have {have}")
    if options.shared_disk and timings.one_link:
        raise ConfigError("--shared-disk: need a disk hop, have none; give --disk-ffn-ms or --model")
    rows = _compared(options, timings)
    if options.picture is not None:
        try:
            with writing(options.picture) as file:
                file.write(section_picture(rows).encode())
        except OSError as error:
            raise ConfigError(f"picture {options.picture}: cannot be written: {error.strerror or error}") from error
    if options.json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print(_table(rows))


def _compared(options: argparse.Namespace, timings: LayerTimings) -> list[ComparedSections]:
    counts = [1]
    while counts[-1] < options.sections:
        counts.append(min(2 * counts[-1], options.sections))
    progress, rows = Progress(), []
    line = {name: getattr(options, name) for name in ("hop_seconds", "stays", "shared_disk", *SETTINGS)}
    line["micro_batches"] = options.micro_batches or 1
    for count in counts:
        progress.say(f"simulating {count} of {options.sections} sections")
        in_flight = min(count, options.batch_tokens or count)
        rows.append(compare_sections(timings, timings_from(options, in_flight), count, in_flight, **line))
    progress.clear()
    return rows


def _table(rows: Sequence[ComparedSections]) -> str:
    alone = rows[0].dealt

    def faster(seconds: float) -> str:
        return f"{alone / seconds:.2f}x"

    table = rows_aligned(
        rows,
        {
            ("sections", ""): lambda row: str(row.sections),
            ("hops", ""): lambda row: str(row.hops),
            ("dealt", "ms"): lambda row: f"{row.dealt * MS:.2f}",
            ("formula", "ms"): lambda row: f"{row.formula * MS:.2f}",
            ("", "faster"): lambda row: faster(row.dealt),
            ("contiguous", "ms"): lambda row: f"{row.contiguous * MS:.2f}",
            (" ", "faster"): lambda row: faster(row.contiguous),
            ("passes in flight", "ms"): lambda row: f"{row.in_flight * MS:.2f}",
            ("  ", "faster"): lambda row: faster(row.in_flight),
        },
    )
    return (
        f"{table}\n\n"
        "ms: from token to token of each request; all requests together get as many more tokens as that is faster\n"
        "dealt: layers as the engine deals them; contiguous: those that follow one another; one pass for all requests\n"
        "passes in flight: contiguous layers, and as many passes as sections, each with its share of the tokens"
    )
