"""Programs that serve the same load, each in a process of its own under the same memory limit, in turn."""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.model_config import read_config
from pipeline.tools.bench.accelerate_arm import check_installed
from pipeline.tools.bench.arm_program import ArmRun, Progress, Row, command_of, in_turn, same_tokens
from pipeline.tools.bench.load import Load, LoadSettings
from pipeline.tools.bench.memory_limit import MemoryLimit, OverLimit, run_limited

OURS, ACCELERATE = "penstock", "accelerate"
AGAINST = (ACCELERATE,)


@dataclass(frozen=True, slots=True)
class Arms:
    """What all arms are given. `settings` are our own options, which accelerate has no use for but the dtype."""

    folder: Path
    settings: Mapping[str, Any]
    load: Load
    requests: Sequence[int]
    limit: MemoryLimit | None
    progress: Progress

    def check(self, against: str | None) -> None:
        """Raise ConfigError for a load that a static batch cannot be, and when a package or the model is missing."""
        read_config(self.folder)
        if against is None:
            return
        if against not in AGAINST:
            raise ConfigError(f"--against: need one of {', '.join(AGAINST)}, have {against!r}")
        if self.load.shortest != self.load.longest or self.load.arrivals_per_second is not None:
            raise ConfigError("--against: a static batch needs prompts of one length that come at once; have others")
        check_installed()

    async def run(self, against: str | None, rounds: int) -> list[ArmRun]:
        """Run ours, and what it is held against, alternately. Raises ProgramFailed when one does not get through."""
        names = [OURS, *([against] if against else [])]
        parent = self.folder.resolve().parent
        with tempfile.TemporaryDirectory(prefix="offloaded-", dir=parent) as offload_folder:
            runs = []
            for name, index in in_turn(names, rounds, self.progress):
                run = self._run_ours if name == OURS else self._run_accelerate
                runs.append(await run(index, Path(offload_folder)))
        return runs

    async def _run_ours(self, index: int, offload_folder: Path) -> ArmRun:
        command = self._command("throughput", offload_folder, self.requests)
        printed, peak_bytes = await run_limited(command, self.limit, (self.folder, offload_folder))
        return ArmRun(OURS, index, peak_bytes, json.loads(printed))

    async def _run_accelerate(self, index: int, offload_folder: Path) -> ArmRun:
        """A process for each number of requests: larger batches need more memory, and may need too much."""
        rows, most = list[Row](), 0
        for requests in self.requests:
            try:
                command = self._command("accelerate_arm", offload_folder, [requests])
                printed, peak_bytes = await run_limited(command, self.limit, (self.folder, offload_folder))
                rows += json.loads(printed)
            except OverLimit as error:
                self.progress(f"{error}")
                rows.append({"requests": requests, "token_ids": []})
                peak_bytes = 0
            most = max(most, peak_bytes)
        return ArmRun(ACCELERATE, index, most, rows)

    def _command(self, module: str, offload_folder: Path, requests: Sequence[int]) -> list[str]:
        folders = str(self.folder), str(offload_folder)
        return command_of(module, LoadSettings(*folders, list(requests), asdict(self.load), dict(self.settings)))


def median_rows(runs: Sequence[ArmRun], arm: str) -> list[Row]:
    """One row per number of requests, each figure the median over the rounds; token ids are those of the first."""
    rounds = [run.rows for run in runs if run.arm == arm]
    return [_median(rows) for rows in zip(*rounds, strict=True)]


def agreement(ours: Row, theirs: Row) -> tuple[int, int]:
    """Requests whose tokens are all the same, and tokens before the first difference of their request."""
    same = [same_tokens(*pair) for pair in zip(ours["token_ids"], theirs["token_ids"], strict=True)]
    whole = [count == len(ids) for count, ids in zip(same, ours["token_ids"], strict=True)]
    return sum(whole), sum(same)


def _median(rows: Sequence[Row]) -> Row:
    rows = [row for row in rows if "seconds" in row] or rows
    first = rows[0]
    numbers = [name for name, value in first.items() if isinstance(value, int | float)]
    return {**first, **{name: statistics.median(row[name] for row in rows) for name in numbers}}
