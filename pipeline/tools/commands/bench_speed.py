"""`penstock bench speed MODEL`."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.system.sizes import human_bytes
from pipeline.system.table import aligned, print_json
from pipeline.tools.bench.arm_program import ArmRun, same_tokens
from pipeline.tools.bench.memory_limit import memory_limit
from pipeline.tools.bench.speed import WITHOUT, ArmResult, SpeedBench, arms_of, results
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import below_floor, nothing_moved, with_remarks
from pipeline.tools.commands.settings import plain
from pipeline.tools.commands.values import at_least_one


async def bench_speed(options: argparse.Namespace) -> None:
    """Measure, and print a table or one JSON object. Raises ConfigError for what can never work."""
    at_least_one(options, "passes", "rounds")
    for name in options.arms or ():
        if name not in WITHOUT:
            raise ConfigError(f"--arms: need some of {', '.join(map(repr, WITHOUT))}, have {name!r}")
    settings, limit = dict(plain(options.settings)), memory_limit(options.memory_limit, options.limit_by)
    if limit is not None:
        settings.setdefault("host_memory", limit.nbytes)
    Config.from_arguments(settings)
    progress = Progress()
    bench = SpeedBench(options.model, settings, options.passes, limit, progress.say)
    bench.check(options.against)
    runs = await bench.run([*(options.arms or arms_of(settings)), *options.against], options.rounds)
    progress.clear()
    if options.json:
        print_json([_as_dict(run) for run in runs], indent=None)
    else:
        arms = results(runs)
        print(with_remarks(table(arms), *_remarks(arms)))


def _as_dict(run: ArmRun) -> dict[str, Any]:
    """As plain values: what its only row tells are its `passes`, none if it was over the limit."""
    values = asdict(run)
    rows = values.pop("rows")
    return {**values, "passes": rows[0] if rows else None}


def table(arms: Sequence[ArmResult]) -> str:
    """A row for each arm, the first one's floors below."""
    ours = arms[0]
    measured = [arm for arm in arms if arm.pass_seconds]

    def column(text: Callable[[ArmResult], str]) -> list[str]:
        return [text(arm) if arm.pass_seconds else "-" for arm in arms]

    printed = aligned(
        {
            ("arm", ""): [arm.arm for arm in arms],
            ("pass", "s"): column(lambda arm: f"{arm.median:.3f}"),
            ("p10 to p90", "s"): column(lambda arm: _spread(arm.pass_seconds)),
            ("passes", ""): column(lambda arm: str(len(arm.pass_seconds))),
            (ours.arm, "/ it"): column(lambda arm: f"{ours.median / arm.median:.2f}"),
            ("read", "a pass"): column(lambda arm: human_bytes(arm.read_bytes_per_pass)),
            ("pass /", "floor"): column(lambda arm: f"{statistics.median(arm.ratios):.3f}" if arm.ratios else "-"),
            ("read", "floor s"): column(lambda arm: _floor(arm, "read")),
            ("compute", "floor s"): column(lambda arm: _floor(arm, "compute")),
            ("memory", "at most"): column(lambda arm: human_bytes(arm.peak_bytes)),
            ("tokens", "as ours"): column(
                lambda arm: f"{same_tokens(arm.token_ids, ours.token_ids)}/{len(arm.token_ids)}"
            ),
        }
    )
    over = [arm.arm for arm in arms if arm not in measured]
    return printed + (f"\n{', '.join(over)}: over the memory limit" if over else "")


def _remarks(arms: Sequence[ArmResult]) -> tuple[str, str]:
    moving = {arm.arm: arm.moving_groups for arm in arms if arm.moving_groups is not None}
    unsaid = "these rows do not tell what reading, or moving groups ahead of the computing, is worth"
    ratios = {arm.arm: statistics.median(arm.ratios) for arm in arms if arm.ratios}
    return nothing_moved(moving, unsaid, some="a smaller --memory-limit"), below_floor(ratios)


def _spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return f"{tenths[0]:.3f}-{tenths[-1]:.3f}"


def _floor(arm: ArmResult, name: str) -> str:
    return f"{arm.floors[name]:.3f}" if arm.floors else "-"
