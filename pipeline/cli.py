"""The command line. Only argparse is imported until a command runs, so that `--help` is instant."""

import argparse
import importlib.metadata
import logging
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from pipeline.checkpoints.presets import PRESETS
from pipeline.devices.spinning import spin_little
from pipeline.errors import ConfigError, PenstockError, ResourceError
from pipeline.system.event_loop import run_async, sigterm_ends
from pipeline.system.limits import explained
from pipeline.system.sizes import human_bytes
from pipeline.tools.commands.bench_options import add_bench
from pipeline.tools.commands.doctor import add_doctor
from pipeline.tools.commands.models import MODEL_HELP, find_models
from pipeline.tools.commands.options import add_settings
from pipeline.tools.commands.parser import Parser
from pipeline.tools.commands.plan import add_plan
from pipeline.tools.commands.progress import Progress, say_loading
from pipeline.tools.commands.run import add_run
from pipeline.tools.commands.simulate import add_simulate, simulate_command
from pipeline.tools.commands.streams import OutputFailed, ReaderGone, standard_streams
from pipeline.tools.commands.verify import add_verify
from pipeline.tools.doctor.names import DISTRIBUTION

INTERRUPTED = 130
TORCH_MAPS_BYTES = 660_000_000
"""torch 2.13 for CPUs, with all that commands import; others map more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 or its own exit status, 1 for an error of ours (on stderr), 130 for Ctrl-C.

    Options that do not parse end with SystemExit and status 2, SIGTERM with 143.
    """
    try:
        with standard_streams(), sigterm_ends():
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
        if options.command not in (simulate_command, _report):
            _require_what_torch_loads_with()
        return int(options.command(find_models(options)) or 0)
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
    """On lines of their own."""

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
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_run(commands)
    add_plan(commands)
    add_doctor(commands)
    add_verify(commands)
    _add_demo(commands)
    _add_make_checkpoint(commands)
    add_bench(commands)
    add_simulate(commands)
    _add_tune(commands)
    _add_report(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree that is not installed"


Commands = Any
"""What `add_subparsers` returns; argparse keeps its type private."""
TUNED = (
    *("gpu_groups", "host_groups", "queues", "reader_lanes", "chunk_bytes"),
    *("max_tokens_per_pass", "residency"),
)
"""What `tune` tries, and what it needs for that."""


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo", usage="%(prog)s [options]", help="the bundled model under a budget smaller than itself"
    )
    add_settings(demo, defaults={"gpu_groups": 4, "residency": False, "max_requests": 1})
    demo.set_defaults(command=_demo)


def _add_make_checkpoint(commands: Commands) -> None:
    make = commands.add_parser(
        "make-checkpoint",
        help="write a random-weight checkpoint of a real shape",
        description="Write a checkpoint of a real shape, to measure with. Its weights are random, and so is its text. "
        "The sizes are those of the preset, unless options say otherwise; with few layers it is small.",
    )
    make.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    make.add_argument("--like", required=True, metavar="PRESET", help=", ".join(PRESETS))
    for name in ("layers", "hidden-size", "ffn-size", "heads", "kv-heads", "head-dim", "vocabulary-size"):
        make.add_argument(f"--{name}", type=int, metavar="N", help="in the place of the preset's")
    for name in ("tied-embeddings", "attention-bias", "mlp-bias"):
        make.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None)
    make.add_argument("--dtype", default="bfloat16", help="float32, float16, bfloat16; default bfloat16")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights; default 0")
    make.set_defaults(command=_make_checkpoint)


def _add_tune(commands: Commands) -> None:
    tune = commands.add_parser(
        "tune", usage="%(prog)s MODEL [options]", help="try queue sizes, reader lanes, chunk sizes and budgets"
    )
    tune.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    tune.add_argument("--batch-tokens", type=int, default=1, metavar="B", help="tokens per pass; default 1")
    tune.add_argument("--most-groups", type=int, default=12, metavar="N", help="largest gpu_groups to try; default 12")
    tune.add_argument("--passes", type=int, default=4, metavar="N", help="measured passes of a real run; default 4")
    tune.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(tune, own=TUNED)
    tune.set_defaults(command=_tune)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="turn a trace into one HTML page: what overlapped, and what bound it")
    report.add_argument("trace", type=Path, metavar="TRACE", help="a file written with --trace")
    report.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the page to write")
    report.set_defaults(command=_report)


def _demo(options: argparse.Namespace) -> None:
    say_loading()
    from pipeline.tools.commands.demo import demo

    run_async(demo(options))


def _make_checkpoint(options: argparse.Namespace) -> None:
    from pipeline.tools.commands.make import make

    make(options)


def _tune(options: argparse.Namespace) -> None:
    say_loading()
    from pipeline.tools.commands.tune import tune

    run_async(tune(options))


def _report(options: argparse.Namespace) -> None:
    from pipeline.tools.commands.report import report

    report(options)


if __name__ == "__main__":
    sys.exit(main())
