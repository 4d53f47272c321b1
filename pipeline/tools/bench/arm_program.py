"""All arms of a comparison share this: each is a program of its own, settings in and figures out as JSON, in turn.

So they can be measured under one memory limit. `python -m pipeline.tools.bench.ARM JSON` is one: an arm of `penstock
bench throughput` takes `LoadSettings`, and one of `penstock bench speed` `PassSettings`.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, TypeVar

from pipeline.errors import ConfigError, PenstockError
from pipeline.system import proc

Progress: TypeAlias = Callable[[str], None]
Row: TypeAlias = dict[str, Any]
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm in one round: the rows that it measured; `peak_bytes` as `run_limited` counts them.

    Where the memory limit ended the arm, there is no row, or one without figures. `reason` says why there is none.
    """

    arm: str
    round: int
    peak_bytes: int
    rows: list[Row]
    reason: str | None = None


def in_turn(names: Sequence[str], rounds: int, progress: Progress) -> Iterator[tuple[str, int]]:
    """Each arm in each round. Every other round in the other order: the first may find the machine in another state."""
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            progress(f"round {index + 1}/{rounds}: {name}")
            yield name, index


def command_of(module: str, settings: Any) -> list[str]:
    """The command that starts the arm in a module of this room, with a dataclass of settings."""
    return [sys.executable, "-m", f"{__package__}.{module}", json.dumps(asdict(settings))]


def serve(run: Callable[[Given], Any], given: type[Given], arguments: Sequence[str]) -> int:
    """Run an arm as a program: settings of the class `given` in, what `run` returns out. Returns the exit status."""
    try:
        measured = run(given(**json.loads(arguments[0])))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
    print(json.dumps(measured))
    return 0


def require_installed(against: str, modules: Sequence[str], packages: str) -> None:
    """Raise ConfigError, which says what to install, where a module is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"--against {against}: {module} is not installed: pip install {packages}")


def same_tokens(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens come before the first difference."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(ids), len(others)))


def read_bytes() -> int:
    """Return the bytes that this process made the disk read: mapped pages count when they are fetched."""
    return int(proc.fields("self/io")["read_bytes"])


def say(text: str) -> None:
    """Print progress on stderr, which the command that started the arm shares."""
    print(text, file=sys.stderr, flush=True)
