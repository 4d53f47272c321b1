"""All arms of `penstock bench speed` share this: the scenarios that they are asked for, and the notes of each pass."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.models.model_config import read_config
from pipeline.tools.bench.arm_program import Row, read_bytes, say, serve
from pipeline.tools.bench.load import Load

WARM_UP = 3
"""Passes that are not measured: the first ones load what stays."""
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1}
"""How all arms draw tokens, where they do not take the most likely ones."""
SAY_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """So many `requests` at once, with prompts of one length, each continued token by token; `passes` are measured.

    With `first_token` a pass ends with the first token, and each computes a prompt anew.
    """

    requests: int = 1
    prompt_tokens: int = 1
    passes: int = 5
    sampled: bool = False
    first_token: bool = False

    @property
    def name(self) -> str:
        """As the table calls it."""
        if self.first_token:
            return f"first of {self.prompt_tokens}"
        return f"{self.requests} {'sampled' if self.sampled else 'greedy'}"

    @property
    def wanted(self) -> int:
        """How many passes are to be run, those to warm up among them."""
        return self.warm_up + self.passes

    @property
    def warm_up(self) -> int:
        """How many of them are not measured."""
        return 1 if self.first_token else WARM_UP

    @property
    def new_tokens(self) -> int:
        """Tokens of each request."""
        return 1 if self.first_token else self.wanted


@dataclass(slots=True)
class ArmPasses:
    """The measurements of an arm in a scenario: seconds of each pass, bytes that the disk delivered for it, and tokens.

    `floors` are seconds, measured in the same process; `moving_groups` move in every pass: of an arm that knows them.
    `device_bytes` are the most of a GPU's memory that the process held until then.
    """

    arm: str
    scenario: Scenario
    vocabulary_size: int
    pass_seconds: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    read_bytes: int = 0
    floors: dict[str, list[float]] = field(default_factory=dict)
    moving_groups: int | None = None
    device_bytes: int = 0
    _ran: int = 0
    _read_before: int = 0
    _said: float = 0.0

    @property
    def prompts(self) -> list[list[int]]:
        """A prompt for each request, the same for every arm."""
        length = self.scenario.prompt_tokens
        return Load(length, length, 1).prompts(self.scenario.requests, self.vocabulary_size)

    def took(self, seconds: float) -> None:
        """Note one pass."""
        self._ran += 1
        if self._ran > self.scenario.warm_up:
            self.pass_seconds.append(seconds)
        elif self._ran == self.scenario.warm_up:
            self._read_before = read_bytes()
        if self._ran == self.scenario.wanted:
            self.read_bytes = read_bytes() - self._read_before
            if torch.cuda.is_initialized():
                self.device_bytes = torch.cuda.max_memory_allocated()
        if self._ran == self.scenario.wanted or time.perf_counter() > self._said + SAY_SECONDS:
            self._said = time.perf_counter()
            passes = f"{self._ran}/{self.scenario.wanted} passes"
            say(f"{self.arm}, {self.scenario.name}: {passes}, the last in {seconds:.3f} s")

    def as_dict(self) -> Row:
        """As plain values."""
        return {
            "scenario": self.scenario.name,
            "pass_seconds": self.pass_seconds,
            "read_bytes_per_pass": self.read_bytes / max(1, len(self.pass_seconds)),
            "token_ids": self.token_ids,
            "floors": self.floors,
            "moving_groups": self.moving_groups,
            "device_bytes": self.device_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSettings:
    """The settings of an arm: fields of each `Scenario`, and a folder for the weights as other programs want them.

    `gguf` is a file of the same weights that llama.cpp's own converter has written, where there is one.
    """

    folder: str
    offload_folder: str
    arm: str
    scenarios: list[dict[str, Any]]
    device: str = "auto"
    dtype: str = "auto"
    gguf: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def passes(self) -> list[ArmPasses]:
        """Return the scenarios that are to be measured, in turn."""
        vocabulary_size = read_config(Path(self.folder)).vocabulary_size
        return [ArmPasses(self.arm, Scenario(**one), vocabulary_size) for one in self.scenarios]

    @property
    def torch_device(self) -> torch.device:
        """Where other programs compute."""
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")


def serve_passes(run: Callable[[PassSettings], list[ArmPasses]], arguments: Sequence[str]) -> int:
    """Run an arm as a program, which prints a row for each scenario; returns the exit status."""
    return serve(lambda settings: [one.as_dict() for one in run(settings)], PassSettings, arguments)
