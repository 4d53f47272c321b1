"""`penstock bench pass MODEL`."""

import argparse
import statistics
from collections.abc import Callable, Sequence

from pipeline.system.sizes import human_bytes
from pipeline.system.table import print_json, rows_aligned
from pipeline.system.written_files import check_writable
from pipeline.tools.bench.one_pass import PassReport, bench_pass, tokens_of
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import below_floor, nothing_moved, with_remarks
from pipeline.tools.commands.values import at_least_one
from pipeline.tools.trace.perfetto import write_trace
from pipeline.tools.trace.recording import Recording

UNSAID = "a pass is computing alone, and overlapping has nothing to gain"
UNBALANCED = ", and multiples of a balance, as 1x, are multiples of one token"


async def bench(options: argparse.Namespace) -> None:
    """Measure, and print a table or one JSON object; of an early end, by Ctrl-C or an error, what is complete."""
    at_least_one(options, "passes")
    check_one_device(options.settings)
    if options.trace is not None:
        check_writable(options.trace)
    progress, settings = Progress(), options.settings
    rows: list[PassReport] = []
    try:
        for model in options.model:
            for text in options.batch_tokens.split(","):
                tokens = await tokens_of(model, settings, text, progress.say)
                report, recording = await bench_pass(model, settings, tokens, options.passes, progress.say)
                rows.append(report)
    finally:
        progress.clear()
        if rows:
            _tell(options, rows, recording)


def _tell(options: argparse.Namespace, rows: Sequence[PassReport], recording: Recording) -> None:
    if options.trace is not None:
        write_trace(options.trace, recording)  # before what is printed, whose reader may go away
    if options.json:
        print_json([row.as_dict() for row in rows])
    else:
        ratios = {f"{row.model}, {row.tokens} tokens": statistics.median(row.ratios) for row in rows}
        unsaid = UNSAID + UNBALANCED * ("x" in options.batch_tokens)
        still = nothing_moved({row.model: row.moving_groups for row in rows}, unsaid)
        print(with_remarks(pass_table(rows), still, below_floor(ratios)))


def pass_table(rows: Sequence[PassReport]) -> str:
    """A row for each model and number of tokens: medians over the rounds, and the range of the ratio."""

    def median(name: str) -> Callable[[PassReport], str]:
        def cell(row: PassReport) -> str:
            seconds = statistics.median(getattr(row, name))
            return f"{seconds:.3f}" if seconds else "-"  # memory that is one has no link

        return cell

    return rows_aligned(
        rows,
        {
            ("model", ""): lambda row: row.model,
            ("tokens", "a pass"): lambda row: str(row.tokens),
            ("read", "a pass"): lambda row: human_bytes(row.read_bytes_per_pass),
            ("read /", "needed"): lambda row: (
                f"{row.read_bytes_per_pass / row.needed_bytes_per_pass:.3f}" if row.needed_bytes_per_pass else "-"
            ),
            ("read", "floor s"): median("read_floor_seconds"),
            ("H2D", "floor s"): median("upload_floor_seconds"),
            ("compute", "floor s"): median("compute_floor_seconds"),
            ("pass", "s"): median("pass_seconds"),
            ("pass /", "floor"): lambda row: f"{statistics.median(row.ratios):.3f}",
            ("range", ""): lambda row: f"{min(row.ratios):.3f}-{max(row.ratios):.3f}",
            ("both", "s"): median("both_seconds"),
            ("pass /", "both"): lambda row: f"{statistics.median(row.ratios_to_both):.3f}",
            ("sequential", "s"): median("sequential_seconds"),
            ("gain /", "ideal"): lambda row: f"{row.gain:.3f}" if row.moving_groups else "-",
            ("gain /", "both"): lambda row: f"{row.gain_of_both:.3f}" if row.moving_groups else "-",
            ("waited ms", "first/mean"): lambda row: "/".join(
                f"{1000 * statistics.median(each):.1f}" for each in (row.first_wait_seconds, row.wait_seconds)
            ),
            ("recording", ""): lambda row: f"{row.recording_ratio - 1:+.1%}",
        },
    )
