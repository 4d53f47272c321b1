"""`penstock bench speed`: one token a pass, by this runtime, by it without its features in turn, and by other programs.

Each arm is a process of its own under the same memory limit, with nothing of its files cached when it starts. Arms take
turns, in the other order every other round.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.models.model_config import read_config
from pipeline.tools.bench import hugging_face_arm, llama_arm
from pipeline.tools.bench.arm_program import ArmRun, Progress, command_of, in_turn
from pipeline.tools.bench.hugging_face_arm import ACCELERATE, DIFFUSERS, RING, TRANSFORMERS
from pipeline.tools.bench.memory_limit import MemoryLimit, OverLimit, ProgramFailed, run_limited
from pipeline.tools.bench.our_arm import SEQUENTIAL, asked_of, model_options
from pipeline.tools.bench.pass_arm import PassSettings, Scenario
from pipeline.tools.bench.stream import Asked

OURS, FROM_HOST, LLAMA, GRAPHS, FLOORS = "penstock", "from host memory", "llama.cpp", "graphs", "floors"
WITHOUT: Mapping[str, Mapping[str, Any]] = {
    OURS: {},
    FROM_HOST: {},
    "without residency": {"residency": False},
    "through the page cache": {"direct_reads": False},
    "by aiofiles": {"reader_way": "aiofiles"},
    "one group at a time": {"gpu_groups": 1},
    SEQUENTIAL: {},
}
"""Settings that turn a feature off. `FROM_HOST` gets the GPU memory that the ring takes; the last is a loop apart."""
ELSEWHERE = ", the other tree"
"""Behind the name of an arm of ours that another tree runs."""
AGAINST = {
    ACCELERATE: "hugging_face_arm",
    TRANSFORMERS: "hugging_face_arm",
    LLAMA: "llama_arm",
    DIFFUSERS: "hugging_face_arm",
    RING: "hugging_face_arm",
    GRAPHS: "graph_arm",
}
WRITE_FIRST = (ACCELERATE, LLAMA)
UNLIMITED = (TRANSFORMERS, DIFFUSERS, RING, GRAPHS, FLOORS)
"""What holds all weights in memory is there to compare the computing, or the copying."""
ON_A_GPU = (DIFFUSERS, RING, GRAPHS)
ONLY: Mapping[str, tuple[str, Callable[[Scenario], bool]]] = {
    GRAPHS: ("decodes greedily", lambda one: not one.sampled and not one.first_token),
    LLAMA: ("decodes one request", lambda one: one.requests == 1 and not one.first_token),
    SEQUENTIAL: (
        "decodes one request, greedily",
        lambda one: one.requests == 1 and not one.sampled and not one.first_token,
    ),
}
"""What an arm does, where it does not do all: in words, and of a scenario."""


@dataclass(slots=True)
class SpeedBench:
    """What all arms are given; `settings` are those of our own, `beside` is another tree of it, `gguf` a file of the
    same weights for llama.cpp.
    """

    folder: Path
    settings: Mapping[str, Any]
    scenarios: Sequence[Scenario]
    limit: MemoryLimit | None
    progress: Progress
    beside: Path | None = None
    gguf: Path | None = None
    ring_bytes: int | None = None
    """The GPU memory that the ring took, once it has run."""
    runs: list[ArmRun] = field(default_factory=list)
    """What is measured so far."""

    def check(self, against: Sequence[str]) -> None:
        """Raise ConfigError when there is no such arm, or the model or the other tree are missing."""
        read_config(self.folder)
        for name in against:
            if name not in AGAINST:
                raise ConfigError(f"--against: need some of {', '.join(AGAINST)}, have {name!r}")
        if self.gguf is not None and not self.gguf.is_file():
            raise ConfigError(f"--gguf: need a file that llama.cpp's own converter has written, have {self.gguf}")
        if self.beside is not None and not (self.beside / "pipeline" / "api.py").is_file():
            raise ConfigError(f"--beside: need a tree of penstock, with pipeline/api.py; have {self.beside}")

    @property
    def on_a_gpu(self) -> bool:
        """Whether a GPU computes."""
        device = self.settings.get("device", "auto")
        return bool(device == "cuda" or (device == "auto" and torch.cuda.is_available()))

    async def run(self, names: Sequence[str], rounds: int) -> None:
        """All arms in every round. One that cannot run, or fails, has no rows, and the reason instead."""
        reasons = {name: reason for name in names if (reason := self._lacking(name)) is not None}
        able = [name for name in names if name not in reasons]
        if self.on_a_gpu:
            able.insert(0, FLOORS)
        if RING in able:  # before those that get as much memory
            able.insert(0, able.pop(able.index(RING)))
        with tempfile.TemporaryDirectory(prefix="offloaded-", dir=self.folder.resolve().parent) as offload_folder:
            for name in able:
                try:
                    await self._prepare(name, Path(offload_folder) / name)
                except ProgramFailed as error:
                    reasons[name] = f"{name}: {error}"
            able = [name for name in able if name not in reasons]
            self.runs += [ArmRun(name, 0, 0, [], reason) for name, reason in reasons.items()]
            for name, index in in_turn(able, rounds, self.progress):
                self.runs.append(await self._run(name, index, Path(offload_folder) / name))

    def _lacking(self, name: str) -> str | None:
        """Why an arm cannot run here."""
        if name in ON_A_GPU and not self.on_a_gpu:
            return f"{name}: needs a GPU, and --device cuda"
        if name.startswith(FROM_HOST) and not self.on_a_gpu:
            return f"{name}: needs a GPU, and --against ring, whose memory it gets"
        if name in (ACCELERATE, GRAPHS) and read_config(self.folder).quantization.rules:
            return f"{name}: needs a checkpoint that is not quantised"
        try:
            if name == LLAMA:
                llama_arm.check_installed()
            elif AGAINST.get(name) == "hugging_face_arm":
                hugging_face_arm.check_installed(name)
        except ConfigError as error:
            return str(error)
        return None

    async def _prepare(self, name: str, offload_folder: Path) -> None:
        """Let other programs write the weights as they want them, without a limit and before anything is measured."""
        await asyncio.to_thread(offload_folder.mkdir, exist_ok=True)
        if name in WRITE_FIRST and not self.on_a_gpu and not (name == LLAMA and self.gguf):
            self.progress(f"{name}: writing its weights")
            await run_limited(self._command(name, offload_folder, [Scenario(passes=1)]), None, ())

    async def _run(self, name: str, index: int, offload_folder: Path) -> ArmRun:
        limit = None if name in UNLIMITED else self.limit
        if name.startswith(FROM_HOST) and self.ring_bytes is None:
            return ArmRun(name, index, 0, [], f"{name}: needs --against ring, whose memory it gets")
        command = self._command(name, offload_folder, [one for one in self.scenarios if does(name, one)])
        try:
            folders = [self.folder, offload_folder, *([self.gguf.parent] if self.gguf else [])]
            printed, peak_bytes = await run_limited(command, limit, folders)
        except ProgramFailed as error:
            self.progress(str(error))
            reason = "over the memory limit" if isinstance(error, OverLimit) else str(error)
            return ArmRun(name, index, 0, [], f"{name}: {reason}")
        rows = json.loads(printed)
        if name == RING:
            self.ring_bytes = max(row["device_bytes"] for row in rows)
        return ArmRun(name, index, peak_bytes, rows)

    def _command(self, name: str, offload_folder: Path, scenarios: Sequence[Scenario]) -> list[str]:
        ours = name.removesuffix(ELSEWHERE)
        options = {**self.settings, **WITHOUT[ours]} if ours in WITHOUT else {}
        if ours == FROM_HOST:
            options["gpu_memory"] = self.ring_bytes
        for shared in ("dtype", "device"):
            options.pop(shared, None)
        settings = PassSettings(
            folder=str(self.folder),
            offload_folder=str(offload_folder),
            arm=name,
            scenarios=[asdict(one) for one in scenarios],
            device=self.settings.get("device", "auto"),
            dtype=self.settings.get("dtype", "auto"),
            gguf=str(self.gguf) if self.gguf else None,
            options=options,
        )
        if name == ours:
            return command_of({**AGAINST, FLOORS: "device_floors"}.get(name, "our_arm"), settings)
        asked: Asked = {
            "tree": str(self.beside),
            "folder": str(self.folder),
            "options": model_options(settings),
            "scenarios": list(map(asked_of, settings.passes())),
        }
        offload_folder.mkdir(exist_ok=True)
        told = offload_folder / "asked.json"  # prompts of thousands of tokens are too long for an argument
        told.write_text(json.dumps(asked))
        return [sys.executable, str(Path(__file__).with_name("stream.py")), str(told)]


def does(name: str, scenario: Scenario) -> bool:
    """Whether an arm does it."""
    return name not in ONLY or ONLY[name][1](scenario)


def arms_of(settings: Mapping[str, Any], against: Sequence[str]) -> list[str]:
    """All arms of ours but those that turn off what the settings have turned off already."""
    names = [name for name, off in WITHOUT.items() if not off or {**settings, **off} != settings]
    return names if RING in against else [name for name in names if name != FROM_HOST]
