"""`penstock bench`: the options of all that it measures. What they do is imported when it runs: `--help` is instant."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.system.event_loop import run_async
from pipeline.tools.commands.bench_open import add_bench_open
from pipeline.tools.commands.bench_speed import add_bench_speed
from pipeline.tools.commands.models import MODEL_HELP
from pipeline.tools.commands.options import add_settings, add_trace
from pipeline.tools.commands.progress import say_loading


def add_bench(commands: Any) -> None:
    """Add the parsers to `commands`, which is what `add_subparsers` gave."""
    bench = commands.add_parser("bench", help="measure").add_subparsers(metavar="WHAT", required=True)
    one_pass = bench.add_parser(
        "pass", usage="%(prog)s MODEL ... [options]", help="a pass against its floors, and against one without overlap"
    )
    one_pass.add_argument("model", type=Path, nargs="+", metavar="MODEL", help=f"one or more, each {MODEL_HELP}")
    one_pass.add_argument(
        "--batch-tokens",
        default="1",
        metavar="B",
        help="tokens per pass, or multiples of those that compute as long as bytes move: 1,1x,4x; default 1",
    )
    one_pass.add_argument("--passes", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    one_pass.add_argument("--json", action="store_true")
    add_settings(one_pass)
    add_trace(one_pass)
    one_pass.set_defaults(command=_bench_pass)
    policies = bench.add_parser(
        "policies", usage="%(prog)s MODEL [options]", help="every prefetch policy, measured and simulated"
    )
    policies.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    policies.add_argument(
        "--policies", nargs="+", metavar="P", help="names, or yours as MODULE:NAME; default: all seven"
    )
    policies.add_argument("--passes", type=int, default=8, metavar="N", help="measured passes of each; default 8")
    policies.add_argument(
        "--batch-tokens", type=int, metavar="B", help="tokens per pass; default: so that computing and reading balance"
    )
    policies.add_argument("--json", action="store_true")
    own = ("policy", "residency", "context_tokens", "max_tokens_per_pass")
    add_settings(policies, own, {"gpu_groups": 10})
    add_trace(policies, "; a file for each policy, whose name goes before the suffix")
    policies.set_defaults(command=_bench_policies)
    _add_bench_throughput(bench)
    add_bench_speed(bench)
    add_bench_open(bench)
    core = bench.add_parser("core", help="what channels and the line itself cost, on a simulated device")
    core.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of; default 5")
    core.add_argument("--json", action="store_true")
    core.set_defaults(command=_bench_core)


def _add_bench_throughput(bench: Any) -> None:
    parser = bench.add_parser(
        "throughput",
        usage="%(prog)s MODEL --requests N --prompt-tokens P --new-tokens T [options]",
        help="many requests at once: tokens per second, latencies, and the floors",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
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
    parser.set_defaults(command=_bench_throughput)


def _bench_pass(options: argparse.Namespace) -> None:
    say_loading()
    from pipeline.tools.commands.bench_pass import bench

    run_async(bench(options))


def _bench_policies(options: argparse.Namespace) -> None:
    say_loading()
    from pipeline.tools.commands.bench_policies import bench_policies

    run_async(bench_policies(options))


def _bench_throughput(options: argparse.Namespace) -> None:
    say_loading()
    from pipeline.tools.commands.bench_throughput import throughput

    run_async(throughput(options))


def _bench_core(options: argparse.Namespace) -> None:
    from pipeline.tools.commands.bench_core import core

    core(options)
