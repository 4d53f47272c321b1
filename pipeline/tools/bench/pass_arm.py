"""What all arms of `penstock bench speed` share: they decode token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.tools.bench.arm_program import read_bytes, say, serve

WARM_UP = 3
"""Passes that are not measured: the first ones load what stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSettings:
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
    settings: PassSettings
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


def serve_passes(run: Callable[[PassSettings], Passes], arguments: Sequence[str]) -> int:
    """Run an arm as a program, which prints its passes; returns the exit status."""
    return serve(lambda settings: run(settings).as_dict(), PassSettings, arguments)
