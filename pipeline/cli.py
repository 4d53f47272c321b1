"""The command line. Only argparse is imported until a command runs, so that `--help` is instant."""

import argparse
import importlib.metadata
import io
import logging
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from actors.core.errors import PenstockError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error of ours (one line on stderr), 130 for Ctrl-C."""
    _log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except BrokenPipeError:
        # Whoever read our output has enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npenstock: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _log_to_stderr() -> None:
    logger = logging.getLogger("penstock")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("penstock: %(message)s"))
        logger.addHandler(handler)


def run_async(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine, on uvloop where it is installed (rule 10)."""
    import asyncio

    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock", description="Runs language models that are bigger than the memory of the device that computes."
    )
    parser.add_argument("--version", action="version", version=f"penstock {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_demo(commands)
    _add_make_checkpoint(commands)
    _add_bench(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("penstock")
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree that is not installed"


Commands = Any
"""What `add_subparsers` returns; argparse keeps its type private."""


def _add_run(commands: Commands) -> None:
    run = commands.add_parser("run", help="continue a prompt and stream the text")
    run.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    run.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    run.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    run.add_argument(
        "--temperature", type=float, metavar="T", help="0 takes the most likely token; default: the checkpoint's"
    )
    run.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    _add_settings(run)
    run.set_defaults(command=_run)


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="the bundled model under a budget smaller than itself")
    demo.set_defaults(command=_demo)


def _add_make_checkpoint(commands: Commands) -> None:
    make = commands.add_parser("make-checkpoint", help="write a random-weight checkpoint of a real shape")
    make.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    make.add_argument("--like", required=True, metavar="PRESET", help="llama-3-8b, qwen2.5-7b, ...")
    for name in ("layers", "hidden-size", "ffn-size", "heads", "kv-heads", "head-dim", "vocabulary-size"):
        make.add_argument(f"--{name}", type=int, metavar="N")
    make.add_argument("--tied-embeddings", action=argparse.BooleanOptionalAction, default=None)
    make.add_argument("--dtype", default="bfloat16", help="default bfloat16")
    make.add_argument("--seed", type=int, default=0)
    make.set_defaults(command=_make_checkpoint)


def _add_bench(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="measure").add_subparsers(metavar="WHAT", required=True)
    one_pass = bench.add_parser("pass", help="one pass against its read floor and its compute floor")
    one_pass.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    one_pass.add_argument("--passes", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    one_pass.add_argument("--json", action="store_true")
    _add_settings(one_pass)
    one_pass.set_defaults(command=_bench_pass)
    core = bench.add_parser("core", help="what channels and the line itself cost, on a simulated device")
    core.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    core.add_argument("--json", action="store_true")
    core.set_defaults(command=_bench_core)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu-groups", type=int, default=4, metavar="N", help="weight groups on the device; default 4")
    parser.add_argument("--device", default="auto", help="auto, cpu, cpu-copy, cuda; default auto")


def _run(options: argparse.Namespace) -> None:
    _say_loading()
    from pipeline.commands.run import run

    run_async(run(options))


def _demo(options: argparse.Namespace) -> None:
    _say_loading()
    from pipeline.commands.demo import demo

    run_async(demo())


def _make_checkpoint(options: argparse.Namespace) -> None:
    from pipeline.commands.make import make

    make(options)


def _say_loading() -> None:
    """torch takes a second or two to import, and nothing may look hung."""
    from pipeline.commands.progress import Progress

    Progress().say("loading torch")


def _bench_pass(options: argparse.Namespace) -> None:
    _say_loading()
    from pipeline.commands.bench import bench

    run_async(bench(options))


def _bench_core(options: argparse.Namespace) -> None:
    from pipeline.commands.bench import core

    core(options)


if __name__ == "__main__":
    sys.exit(main())
