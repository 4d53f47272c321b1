"""`penstock bench open MODEL ...`."""

import argparse
import statistics
from collections.abc import Callable, Sequence

from pipeline.system.sizes import human_bytes
from pipeline.system.table import print_json, rows_aligned
from pipeline.tools.bench.opening import OpeningReport, bench_opening
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import nothing_moved, with_remarks
from pipeline.tools.commands.values import at_least_one

GIGA, MILLI, MICRO = 1e9, 1e-3, 1e-6
UNSAID = "a pass streams nothing, and its time tells nothing of the disk"


async def bench_open(options: argparse.Namespace) -> None:
    """Measure each model, and print a table or one JSON list, after an early end too. Raises ConfigError."""
    at_least_one(options, "rounds", "passes")
    check_one_device(options.settings)
    progress = Progress()
    rows: list[OpeningReport] = []
    try:
        for model in options.model:
            rows.append(await bench_opening(model, options.settings, options.rounds, options.passes, progress.say))
    finally:
        progress.clear()
        if rows:
            still = nothing_moved({row.model: row.moving_groups for row in rows}, UNSAID)
            if options.json:
                print_json([row.as_dict() for row in rows])
            else:
                print(with_remarks(table(rows), still))


def table(rows: Sequence[OpeningReport]) -> str:
    """A row for each model: medians over the rounds."""

    def median(name: str, unit: float, digits: int) -> Callable[[OpeningReport], str]:
        return lambda row: f"{statistics.median(getattr(row, name)) / unit:.{digits}f}"

    return rows_aligned(
        rows,
        {
            ("model", ""): lambda row: row.model,
            ("groups", ""): lambda row: str(row.groups),
            ("streamed", "a pass"): lambda row: human_bytes(row.streamed_bytes),
            ("open", "ms"): median("open_seconds", MILLI, 1),
            ("first group", "ms"): median("first_group_seconds", MILLI, 1),
            ("its read", "ms"): median("line_read_seconds", MILLI, 1),
            ("alone", "ms"): median("first_read_seconds", MILLI, 1),
            ("first /", "alone"): lambda row: f"{row.first_ratio:.2f}",
            ("full line", "ms"): median("rested_group_seconds", MILLI, 1),
            ("pass", "s"): median("pass_seconds", 1.0, 3),
            ("pass", "s/GB"): lambda row: (
                f"{statistics.median(row.pass_seconds) / row.streamed_bytes * GIGA:.3f}" if row.streamed_bytes else "-"
            ),
            ("event loop", "us/group"): median("loop_group_seconds", MICRO, 0),
            ("idle", "% of a core"): median("idle_share", 0.01, 2),
        },
    )
