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
from pipeline.tools.bench.arm_program import ArmRun, Progress, Row, command_of, in_turn, same_tokens
from pipeline.tools.bench.hugging_face_arm import check_installed
from pipeline.tools.bench.load import Load, LoadSettings
from pipeline.tools.bench.memory_limit import MemoryLimit, OverLimit, run_limited

OURS, ACCELERATE = "penstock", "accelerate"
AGAINST = (ACCELERATE,)


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms, and what all are given; of the `settings`, which are our own, accelerate uses the dtype alone."""

    folder: Path
    settings: Mapping[str, Any]
    load: Load
    requests: Sequence[int]
    limit: MemoryLimit | None
    progress: Progress

    def check(self, against: str | None) -> None:
        """Raise ConfigError for a load that a static batch cannot be, and when a package or the model is missing."""
        model = read_config(self.folder)
        if against is None:
            return
        if against not in AGAINST:
            raise ConfigError(f"--against: need one of {', '.join(AGAINST)}, have {against!r}")
        if self.load.shortest != self.load.longest or self.load.arrivals_per_second is not None:
            raise ConfigError("--against: a static batch needs prompts of one length that come at once; have others")
        if model.quantization.rules:
            raise ConfigError(f"--against {against}: needs a checkpoint that is not quantised, have {self.folder}")
        check_installed(against)

    async def run(self, against: str | None, rounds: int) -> list[ArmRun]:
        """Run ours, and what it is held against, alternately. Raises ProgramFailed when one does not get through."""
        names = [OURS, *([against] if against else [])]
        parent = self.folder.resolve().parent
        with tempfile.TemporaryDirectory(prefix="offloaded-", dir=parent) as offload_folder:
            turns = in_turn(names, rounds, self.progress)
            return [await self._run(name, index, Path(offload_folder)) for name, index in turns]

    async def _run(self, name: str, index: int, offload_folder: Path) -> ArmRun:
        """Run ours at once, another one for each number of requests: larger batches may need too much memory."""
        module, batches = "throughput", [list(self.requests)]
        if name != OURS:
            module, batches = "accelerate_arm", [[requests] for requests in self.requests]
        rows, most, load, options = list[Row](), 0, asdict(self.load), dict(self.settings)
        for requests in batches:
            settings = LoadSettings(str(self.folder), str(offload_folder), requests, load, options)
            try:
                command = command_of(module, settings)
                printed, peak_bytes = await run_limited(command, self.limit, (self.folder, offload_folder))
            except OverLimit as error:
                if name == OURS:
                    raise
                self.progress(f"{error}")
                rows.append({"requests": requests[0], "token_ids": []})
            else:
                rows += json.loads(printed)
                most = max(most, peak_bytes)
        return ArmRun(name, index, most, rows)


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
