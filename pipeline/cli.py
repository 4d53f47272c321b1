"""The command line. Only argparse is imported until a command runs, so that `--help` is instant."""

import importlib.metadata
import logging
import os
import resource
import sys
from collections.abc import Sequence
from typing import TextIO

from pipeline.devices.spinning import spin_little
from pipeline.errors import ConfigError, PenstockError, ResourceError
from pipeline.system.event_loop import signal_ends
from pipeline.system.limits import explained
from pipeline.system.sizes import human_bytes
from pipeline.tools.commands.command_options import add_commands
from pipeline.tools.commands.options import find_models
from pipeline.tools.commands.parser import Parser
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.streams import OutputFailed, ReaderGone, standard_streams
from pipeline.tools.doctor.names import DISTRIBUTION

INTERRUPTED = 130
TORCH_MAPS_BYTES = 660_000_000
"""torch 2.13 for CPUs, with all that commands import; others map more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 or its own exit status, 1 for an error of ours (on stderr), 130 for Ctrl-C.

    Options that do not parse end with SystemExit and status 2, SIGTERM with 143.
    """
    try:
        with standard_streams(), signal_ends():
            return _main(arguments)
    except ReaderGone:
        return 0
    except OutputFailed as error:
        return _failed(error)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        spin_little()
        _log_to_stderr()
        options = _parser().parse_args(arguments)
        if options.command.loads_torch:
            _require_what_torch_loads_with()
        return int(options.command(find_models(options)))
    except PenstockError as error:
        return _failed(error)
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        if isinstance(reason := explained(error), ImportError | RuntimeError) and reason is error:
            raise
        return _failed(reason)
    except KeyboardInterrupt:
        Progress().clear()
        print("\npenstock: interrupted", file=sys.stderr)
        return INTERRUPTED


def _require_what_torch_loads_with() -> None:
    """Without a folder torch ends the process, and with less address space it may also try without end."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the current folder was deleted, and torch does not load there; go to another one") from error
    have = resource.getrlimit(resource.RLIMIT_AS)[0]
    if have != resource.RLIM_INFINITY and have < TORCH_MAPS_BYTES:
        raise ResourceError(
            f"need {human_bytes(TORCH_MAPS_BYTES)} of address space to load torch alone, have a limit of "
            f"{human_bytes(have)} (ulimit -v); raise the limit"
        )


def _failed(error: BaseException) -> int:
    Progress().clear()
    print(f"penstock: {error}", file=sys.stderr)
    return 1


class _Warnings(logging.StreamHandler[TextIO]):
    def emit(self, record: logging.LogRecord) -> None:
        Progress().clear()
        super().emit(record)


def _log_to_stderr() -> None:
    logger = logging.getLogger("penstock")
    if not logger.handlers:
        handler = _Warnings()
        handler.setFormatter(logging.Formatter("penstock: %(message)s"))
        logger.addHandler(handler)


def _parser() -> Parser:
    parser = Parser(
        prog="penstock",
        description="Runs language models that are bigger than the memory of the device that computes.",
        epilog="Results go to stdout, all else to stderr. The exit status is 1 when something failed, 2 when options "
        "do not parse, 130 after Ctrl-C, and 143 after SIGTERM.",
    )
    parser.add_argument("--version", action="version", version=f"penstock {_version()}")
    add_commands(parser.add_subparsers(metavar="COMMAND", required=True))
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree that is not installed"


if __name__ == "__main__":
    sys.exit(main())
