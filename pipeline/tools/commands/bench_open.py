"""`penstock bench open MODEL ...`: its options. What it does is imported when it runs, so that `--help` is instant."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.tools.commands.models import MODEL_HELP
from pipeline.tools.commands.options import add_settings


def add_bench_open(bench: Any) -> None:
    """Add the command's parser to those of `bench`."""
    parser = bench.add_parser(
        "open",
        usage="%(prog)s MODEL ... [options]",
        help="opening, the first group, a pass, and what the runtime costs, by model",
    )
    parser.add_argument(
        "model", type=Path, nargs="+", metavar="MODEL", help=f"one or more, of several sizes, each {MODEL_HELP}"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="how often each is opened; default 3")
    parser.add_argument("--passes", type=int, default=5, metavar="N", help="measured passes each time; default 5")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    add_settings(parser)
    parser.set_defaults(command=bench_open_command)


def bench_open_command(options: argparse.Namespace) -> None:
    """Measure and print. Raises ConfigError naming the option that can never work."""
    from pipeline.system.event_loop import run_async
    from pipeline.tools.commands.opening_table import bench_open

    run_async(bench_open(options))
