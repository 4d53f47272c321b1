"""Runs a command, whose module is imported only then, so that `--help` is instant."""

import argparse
import importlib
from collections.abc import Coroutine
from dataclasses import dataclass

from pipeline.tools.commands.progress import Progress


@dataclass(frozen=True, slots=True)
class Command:
    """A function of a module of this room, plain or async, which is given the options.

    `loads_torch` is False for what runs without it. `said`, in which options may be named, is said before the import,
    which may take a second or two.
    """

    module: str
    function: str
    loads_torch: bool = True
    said: str | None = None

    def __call__(self, options: argparse.Namespace) -> int:
        """Run it. Returns the exit status, and raises PenstockError as the function does."""
        if self.said is not None:
            Progress().say(self.said.format_map(vars(options)))
        from pipeline.system.event_loop import run_async

        result = getattr(importlib.import_module(f"{__package__}.{self.module}"), self.function)(options)
        return int((run_async(result) if isinstance(result, Coroutine) else result) or 0)
