"""What all arms of `penstock bench speed` share: each is a program of its own that decodes token by token."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import PenstockError

WARM_UP = 3
"""Passes that are not measured: the first ones load what stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSettings:
    """What an arm is told. `offload_folder` holds the weights again, as other programs want them."""

    folder: str
    offload_folder: str
    passes: int
    dtype: str = "auto"
    prompt_id: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def context_tokens(self) -> int:
        """As many as there are passes, and the prompt."""
        return self.passes + WARM_UP + 1


@dataclass(slots=True)
class Passes:
    """What an arm has measured: seconds of each pass, bytes that the device delivered for it, and the tokens.

    `floors` are seconds, measured in the same process; `moving_groups` move in every pass: of an arm that knows them.
    """

    arm: str
    settings: ArmSettings
    pass_seconds: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    read_bytes: int = 0
    floors: dict[str, list[float]] = field(default_factory=dict)
    moving_groups: int | None = None
    _read_before: int = 0

    @property
    def wanted(self) -> int:
        """How many passes are to be run, those to warm up among them."""
        return WARM_UP + self.settings.passes

    def took(self, seconds: float, token_id: int) -> None:
        """Note one pass, and the token that came of it."""
        self.token_ids.append(token_id)
        if len(self.token_ids) == WARM_UP:
            self._read_before = read_bytes()
        if len(self.token_ids) > WARM_UP:
            self.pass_seconds.append(seconds)
            self.read_bytes = read_bytes() - self._read_before
        say(f"{self.arm}: {len(self.token_ids)}/{self.wanted} passes, the last in {seconds:.2f} s")

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "arm": self.arm,
            "pass_seconds": self.pass_seconds,
            "read_bytes_per_pass": self.read_bytes / max(1, len(self.pass_seconds)),
            "token_ids": self.token_ids,
            "floors": self.floors,
            "moving_groups": self.moving_groups,
        }


def read_bytes() -> int:
    """What this process made the disk read: mapped pages count when they are fetched."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def serve(run: Callable[[ArmSettings], Passes], arguments: Sequence[str]) -> int:
    """Run an arm as a program: settings in as JSON, passes out as JSON; returns the exit status."""
    try:
        passes = run(ArmSettings(**json.loads(arguments[0])))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
    print(json.dumps(passes.as_dict()))
    return 0


def told(settings: ArmSettings) -> str:
    """The argument that a program of an arm is given."""
    return json.dumps(asdict(settings))
