"""A parser whose errors are one line, and which suggests the option that was meant."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pipeline.errors import unknown_name

MISSING = ("the following arguments are required", "one of the arguments")
"""How argparse begins to say so."""


class Parser(argparse.ArgumentParser):
    """A parser of argparse with errors of our own; `appendix` gives the text below the help, when that is asked for."""

    appendix: Callable[[], str] | None = None
    _unknown: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and end with status 2.

        What is required may be there misspelt; argparse would speak of that later.
        """
        if message.startswith(MISSING) and self._subparsers is None:
            self._refuse(self._unknown)
        self.exit(2, f"{self.prog}: {message} (options: {self.prog} --help)\n")

    def format_help(self) -> str:
        """The help, and the appendix below it."""
        return super().format_help() + (f"\n{self.appendix()}\n" if self.appendix else "")

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by the type of the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Let an unknown option be an error of the command that does not know it."""
        given = [one.partition("=")[0] for one in args or () if one[:2] == "--" and " " not in one]
        known = tuple(self._option_string_actions)
        self._unknown = [name for name in given if not any(one.startswith(name) for one in known)]
        options, unknown = super().parse_known_args(args, namespace)
        self._refuse(unknown)
        return options, unknown

    def _refuse(self, unknown: Sequence[str]) -> None:
        if not unknown:
            return
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            self.error(f"unexpected argument {name!r}")
        self.error(unknown_name("option", name, [one for one in self._option_string_actions if one[:2] == "--"]))
