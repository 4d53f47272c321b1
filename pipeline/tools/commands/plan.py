"""`penstock plan MODEL`: its options. What it does is imported when it runs, so that `--help` is instant."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.tools.commands.models import MODEL_HELP
from pipeline.tools.commands.options import add_settings


def add_plan(commands: Any) -> None:
    """Add the command's parser to `commands`, which is what `add_subparsers` gave."""
    parser = commands.add_parser(
        "plan",
        usage="%(prog)s MODEL [options]",
        help="what stays where, what a pass will take, what binds, and what would help",
        description="Measure this machine for a few seconds, or take numbers for another one, and forecast. Without "
        "weights, from a config.json or a preset, sizes are computed, and only numbers give a forecast.",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help=f"{MODEL_HELP}; without weights a config.json, or a preset: llama-3-70b, ...",
    )
    parser.add_argument("--batch-tokens", type=int, default=1, metavar="B", help="tokens per pass; default 1")
    parser.add_argument(
        "--check", type=int, metavar="N", help="then run N such passes, to see how far the forecast is off"
    )
    add_settings(parser)
    elsewhere = parser.add_argument_group(
        "a machine that is not here", "With these, and the sizes of its memory; one with a GPU has an H2D rate."
    )
    elsewhere.add_argument("--disk-gbps", type=float, metavar="X", help="1e9 bytes per second from the disk")
    elsewhere.add_argument("--h2d-gbps", type=float, metavar="X", help="1e9 bytes per second to the GPU")
    elsewhere.add_argument("--tflops", type=float, metavar="X", help="1e12 operations per second, as they are reached")
    elsewhere.add_argument("--memory-gbps", type=float, metavar="X", help="1e9 bytes per second that computing reads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=plan_command)


def plan_command(options: argparse.Namespace) -> None:
    """Plan, and print it. Raises ConfigError naming the option that can never work."""
    from pipeline.tools.commands.plan_forecast import plan_forecast

    plan_forecast(options)
