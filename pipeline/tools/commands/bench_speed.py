"""`penstock bench speed MODEL`: its options. What it does is imported when it runs, so that `--help` is instant."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.tools.commands.models import MODEL_HELP
from pipeline.tools.commands.options import add_settings


def add_bench_speed(bench: Any) -> None:
    """Add the command's parser to those of `bench`."""
    parser = bench.add_parser(
        "speed",
        usage="%(prog)s MODEL [options]",
        help="one token a pass: with and without each feature, and by other programs",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--passes", type=int, default=5, metavar="N", help="measured passes of each arm a round; default 5"
    )
    parser.add_argument("--rounds", type=int, default=2, metavar="R", help="how often the arms take turns; default 2")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="P", help="accelerate, llama.cpp, transformers (resident)"
    )
    parser.add_argument("--arms", nargs="+", metavar="A", help="some of our own arms only, by name; default: all")
    parser.add_argument("--memory-limit", metavar="SIZE", help="run each arm in a process limited to 1.8GB, ...")
    parser.add_argument("--limit-by", metavar="WAY", help="systemd or cgroup, whichever is there; or watchdog")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every pass")
    add_settings(parser)
    parser.set_defaults(command=bench_speed_command)


def bench_speed_command(options: argparse.Namespace) -> None:
    """Measure and print. Raises ConfigError naming the option that can never work."""
    from pipeline.system.event_loop import run_async
    from pipeline.tools.commands.speed_table import bench_speed

    run_async(bench_speed(options))
