"""What `penstock bench speed` measured, arm by arm and scenario by scenario, over all rounds."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.tools.bench.arm_program import ArmRun, Row, same_tokens
from pipeline.tools.bench.pass_arm import Scenario
from pipeline.tools.bench.speed import does


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Seconds of all passes of an arm in one scenario, what it read for each, and how many groups moved in each.

    Without passes, it did not do it. Only arms of ours know of floors and groups.
    """

    arm: str
    scenario: Scenario
    pass_seconds: tuple[float, ...] = ()
    read_bytes_per_pass: float = 0.0
    peak_bytes: int = 0
    device_bytes: int = 0
    token_ids: tuple[tuple[int, ...], ...] = ()
    ratios: tuple[float, ...] = ()
    floors: Mapping[str, float] = field(default_factory=dict)
    moving_groups: int | None = None

    @property
    def median(self) -> float:
        """Seconds of a pass."""
        return statistics.median(self.pass_seconds)

    def same_as(self, other: "ArmResult") -> str:
        """Tokens before the first difference of their request, of how many, and the first position that differs."""
        same = [same_tokens(*pair) for pair in zip(self.token_ids, other.token_ids, strict=False)]
        total = sum(map(len, self.token_ids))
        return f"{sum(same)}/{total}" + (f" from {min(same)}" if sum(same) < total else "")


def results(runs: Sequence[ArmRun], names: Sequence[str], scenarios: Sequence[Scenario]) -> list[ArmResult]:
    """Scenario by scenario, every arm."""
    return [_result(arm, one, runs) for one in scenarios for arm in names if does(arm, one)]


def _result(arm: str, scenario: Scenario, runs: Sequence[ArmRun]) -> ArmResult:
    own = [run for run in runs if run.arm == arm]
    done = [row for run in own for row in run.rows if row["scenario"] == scenario.name]
    if not done:
        return ArmResult(arm, scenario)
    return ArmResult(
        arm,
        scenario,
        tuple(seconds for row in done for seconds in row["pass_seconds"]),
        statistics.median(row["read_bytes_per_pass"] for row in done),
        max(run.peak_bytes for run in own),
        max(row["device_bytes"] for row in done),
        tuple(map(tuple, done[0]["token_ids"])),
        tuple(map(_ratio, filter(lambda row: row["floors"], done))),
        {
            name: statistics.median(itertools.chain.from_iterable(row["floors"][name] for row in done))
            for name in done[0]["floors"]
        },
        done[0]["moving_groups"],
    )


def _ratio(row: Row) -> float:
    """A round's pass by the slowest of its own floors."""
    seconds: list[float] = row["pass_seconds"]
    slowest: float = max(map(statistics.median, row["floors"].values()))
    return statistics.median(seconds) / slowest
