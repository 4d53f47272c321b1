"""`penstock bench speed`: one token a pass, by this runtime, by it without its features in turn, and by other programs.

Each arm is a process of its own under the same memory limit, with nothing of its files cached when it starts. Arms take
turns, in the other order every other round.
"""

import asyncio
import itertools
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.model_config import read_config
from pipeline.tools.bench import accelerate_arm, llama_arm
from pipeline.tools.bench.arm_program import ArmRun, Progress, command_of, in_turn
from pipeline.tools.bench.hugging_face_arm import ACCELERATE, TRANSFORMERS
from pipeline.tools.bench.memory_limit import MemoryLimit, OverLimit, run_limited
from pipeline.tools.bench.our_arm import SEQUENTIAL
from pipeline.tools.bench.pass_arm import PassSettings

OURS = "penstock"
WITHOUT: Mapping[str, Mapping[str, Any]] = {
    OURS: {},
    "without residency": {"residency": False},
    "through the page cache": {"direct_reads": False},
    "by aiofiles": {"reader_way": "aiofiles"},
    "one group at a time": {"gpu_groups": 1},
    SEQUENTIAL: {},
}
"""Settings that turn a feature off; the last is a loop of its own."""
AGAINST = {ACCELERATE: "hugging_face_arm", TRANSFORMERS: "hugging_face_arm", "llama.cpp": "llama_arm"}
UNLIMITED = (TRANSFORMERS,)
"""What holds all weights in memory is there to compare the computing."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """An arm over all rounds: seconds of all its passes, what it read for each, and how many groups moved in each.

    Only arms of ours know of groups.
    """

    arm: str
    pass_seconds: tuple[float, ...]
    read_bytes_per_pass: float
    peak_bytes: int
    token_ids: tuple[int, ...]
    ratios: tuple[float, ...] = ()
    floors: Mapping[str, float] = field(default_factory=dict)
    moving_groups: int | None = None

    @property
    def median(self) -> float:
        """Seconds of a pass."""
        return statistics.median(self.pass_seconds)


@dataclass(frozen=True, slots=True)
class SpeedBench:
    """What all arms are given; `settings` are those of our own."""

    folder: Path
    settings: Mapping[str, Any]
    passes: int
    limit: MemoryLimit | None
    progress: Progress

    def check(self, against: Sequence[str]) -> None:
        """Raise ConfigError when there is no such arm, or its packages or the model are missing."""
        read_config(self.folder)
        for name in against:
            if name not in AGAINST:
                raise ConfigError(f"--against: need some of {', '.join(AGAINST)}, have {name!r}")
            (llama_arm if name == "llama.cpp" else accelerate_arm).check_installed()

    async def run(self, names: Sequence[str], rounds: int) -> list[ArmRun]:
        """All arms in every round. Raises ProgramFailed when one does not get through."""
        with tempfile.TemporaryDirectory(prefix="offloaded-", dir=self.folder.resolve().parent) as offload_folder:
            for name in names:
                await self._prepare(name, Path(offload_folder) / name)
            runs = []
            for name, index in in_turn(names, rounds, self.progress):
                runs.append(await self._run(name, index, Path(offload_folder) / name))
            return runs

    async def _prepare(self, name: str, offload_folder: Path) -> None:
        """Let other programs write the weights as they want them, without a limit and before anything is measured."""
        await asyncio.to_thread(offload_folder.mkdir, exist_ok=True)
        if name in AGAINST and name not in UNLIMITED:
            self.progress(f"{name}: writing its weights")
            await run_limited(self._command(name, offload_folder, passes=1), None, ())

    async def _run(self, name: str, index: int, offload_folder: Path) -> ArmRun:
        command = self._command(name, offload_folder, self.passes)
        limit = None if name in UNLIMITED else self.limit
        try:
            printed, peak_bytes = await run_limited(command, limit, (self.folder, offload_folder))
        except OverLimit as error:
            self.progress(str(error))
            return ArmRun(name, index, 0, [])
        return ArmRun(name, index, peak_bytes, [json.loads(printed)])

    def _command(self, name: str, offload_folder: Path, passes: int) -> list[str]:
        options = {"arm": name} if name in AGAINST else {**self.settings, **WITHOUT[name], "arm": name}
        settings = PassSettings(
            folder=str(self.folder),
            offload_folder=str(offload_folder),
            passes=passes,
            dtype=options.pop("dtype", self.settings.get("dtype", "auto")),
            options=options,
        )
        return command_of(AGAINST.get(name, "our_arm"), settings)


def arms_of(settings: Mapping[str, Any]) -> list[str]:
    """All arms of ours but those that turn off what the settings have turned off already."""
    return [name for name, off in WITHOUT.items() if not off or {**settings, **off} != settings]


def results(runs: Sequence[ArmRun]) -> list[ArmResult]:
    """Arm by arm; those that were over the limit in every round have no passes."""
    return [_result(arm, [run for run in runs if run.arm == arm]) for arm in dict.fromkeys(run.arm for run in runs)]


def _result(arm: str, runs: Sequence[ArmRun]) -> ArmResult:
    done = [row for run in runs for row in run.rows]
    if not done:
        return ArmResult(arm, (), 0.0, 0, ())
    floors = {
        name: statistics.median(itertools.chain.from_iterable(one["floors"][name] for one in done))
        for name in done[0]["floors"]
    }
    ratios = tuple(
        statistics.median(one["pass_seconds"]) / max(map(statistics.median, one["floors"].values()))
        for one in done
        if one["floors"]
    )
    return ArmResult(
        arm,
        tuple(seconds for one in done for seconds in one["pass_seconds"]),
        statistics.median(one["read_bytes_per_pass"] for one in done),
        max(run.peak_bytes for run in runs),
        tuple(done[0]["token_ids"]),
        ratios,
        floors,
        done[0].get("moving_groups"),
    )
