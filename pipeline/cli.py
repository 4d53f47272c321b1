"""The command line. Only argparse is imported until a command runs, so that `--help` is instant."""

import argparse
import importlib.metadata
import io
import logging
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from actors.core.errors import PenstockError
from pipeline.commands.bench_open import add_bench_open
from pipeline.commands.bench_speed import add_bench_speed
from pipeline.commands.doctor import add_doctor
from pipeline.commands.models import find_models
from pipeline.commands.options import add_memory, add_settings, add_trace
from pipeline.commands.plan import add_plan
from pipeline.commands.simulate import add_simulate
from pipeline.commands.verify import add_verify
from pipeline.doctor.names import DISTRIBUTION

INTERRUPTED = 130
Result = TypeVar("Result")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 or its own exit status, 1 for an error of ours (on stderr), 130 for Ctrl-C."""
    _log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(find_models(options)) or 0)
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


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its result, on uvloop where it is installed (rule 10)."""
    import asyncio

    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock", description="Runs language models that are bigger than the memory of the device that computes."
    )
    parser.add_argument("--version", action="version", version=f"penstock {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    add_plan(commands)
    add_doctor(commands)
    add_verify(commands)
    _add_demo(commands)
    _add_make_checkpoint(commands)
    _add_bench(commands)
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


def _add_run(commands: Commands) -> None:
    run = commands.add_parser("run", help="continue a prompt and stream the text")
    run.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    run.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    run.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    run.add_argument(
        "--temperature", type=float, metavar="T", help="0 takes the most likely token; default: the checkpoint's"
    )
    run.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    run.add_argument("--policy", default="backpressure", metavar="P", help="prefetch policy; default backpressure")
    add_settings(run)
    add_memory(run)
    add_trace(run)
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
    for name in ("tied-embeddings", "attention-bias", "mlp-bias"):
        make.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None)
    make.add_argument("--dtype", default="bfloat16", help="default bfloat16")
    make.add_argument("--seed", type=int, default=0)
    make.set_defaults(command=_make_checkpoint)


def _add_bench(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="measure").add_subparsers(metavar="WHAT", required=True)
    one_pass = bench.add_parser("pass", help="a pass against its floors, and against one without overlap")
    one_pass.add_argument("model", type=Path, nargs="+", metavar="MODEL", help="checkpoint folders")
    one_pass.add_argument(
        "--batch-tokens",
        default="1",
        metavar="B",
        help="tokens per pass, or multiples of those that compute as long as bytes move: 1,1x,4x; default 1",
    )
    one_pass.add_argument("--passes", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    one_pass.add_argument("--json", action="store_true")
    add_settings(one_pass)
    add_memory(one_pass)
    add_trace(one_pass)
    one_pass.set_defaults(command=_bench_pass)
    policies = bench.add_parser("policies", help="every prefetch policy, measured and simulated")
    policies.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    policies.add_argument("--policies", nargs="+", metavar="P", help="default: all seven")
    policies.add_argument("--passes", type=int, default=8, metavar="N", help="measured passes of each; default 8")
    policies.add_argument(
        "--batch-tokens", type=int, metavar="B", help="tokens per pass; default: so that computing and reading balance"
    )
    policies.add_argument("--json", action="store_true")
    add_settings(policies, gpu_groups=10)
    add_trace(policies)
    policies.set_defaults(command=_bench_policies)
    _add_bench_throughput(bench)
    add_bench_speed(bench)
    add_bench_open(bench)
    core = bench.add_parser("core", help="what channels and the line itself cost, on a simulated device")
    core.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    core.add_argument("--json", action="store_true")
    core.set_defaults(command=_bench_core)


def _add_bench_throughput(bench: Commands) -> None:
    parser = bench.add_parser("throughput", help="many requests at once: tokens per second, latencies, and the floors")
    parser.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    parser.add_argument("--requests", required=True, metavar="N", help="how many, or a list: 1,4,16,64")
    parser.add_argument("--prompt-tokens", required=True, metavar="P", help="of each, or a range: 8-64")
    parser.add_argument("--new-tokens", required=True, type=int, metavar="T", help="of each")
    parser.add_argument("--arrival", metavar="poisson:RATE", help="requests per second; default: all at once")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals; default 0")
    parser.add_argument("--against", metavar="accelerate", help="measure its disk offload too, with a static batch")
    parser.add_argument("--memory-limit", metavar="SIZE", help="run each arm in a process limited to 1.8GB, ...")
    parser.add_argument("--limit-by", metavar="WAY", help="systemd or cgroup, whichever is there; or watchdog")
    parser.add_argument("--rounds", type=int, metavar="R", help="how often the arms take turns; default 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the tokens")
    add_settings(parser)
    add_memory(parser)
    parser.set_defaults(command=_bench_throughput)


def _add_tune(commands: Commands) -> None:
    tune = commands.add_parser("tune", help="try queue sizes, reader lanes, chunk sizes and budgets")
    tune.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    tune.add_argument("--batch-tokens", type=int, default=1, metavar="B", help="tokens per pass; default 1")
    tune.add_argument("--most-groups", type=int, default=12, metavar="N", help="largest gpu_groups to try; default 12")
    tune.add_argument("--passes", type=int, default=4, metavar="N", help="measured passes of a real run; default 4")
    tune.add_argument("--device", default="auto", help="auto, cpu, cpu-copy, cuda; default auto")
    tune.add_argument("--json", action="store_true")
    tune.set_defaults(command=_tune)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="turn a trace into one HTML page: what overlapped, and what bound it")
    report.add_argument("trace", type=Path, metavar="TRACE", help="a file written with --trace")
    report.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the page to write")
    report.set_defaults(command=_report)


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


def _bench_policies(options: argparse.Namespace) -> None:
    _say_loading()
    from pipeline.commands.bench_policies import bench_policies

    run_async(bench_policies(options))


def _bench_throughput(options: argparse.Namespace) -> None:
    _say_loading()
    from pipeline.commands.bench_throughput import throughput

    run_async(throughput(options))


def _tune(options: argparse.Namespace) -> None:
    _say_loading()
    from pipeline.commands.tune import tune

    run_async(tune(options))


def _report(options: argparse.Namespace) -> None:
    from pipeline.commands.report import report

    report(options)


def _bench_core(options: argparse.Namespace) -> None:
    from pipeline.commands.bench import core

    core(options)


if __name__ == "__main__":
    sys.exit(main())
