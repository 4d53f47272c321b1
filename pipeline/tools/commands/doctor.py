"""`penstock doctor [--deep MODEL]`: its options. What it does is imported when it runs, so that `--help` is instant."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.tools.commands.models import MODEL_HELP
from pipeline.tools.commands.options import add_settings


def add_doctor(commands: Any) -> None:
    """Add the command's parser to `commands`, which is what `add_subparsers` gave."""
    parser = commands.add_parser(
        "doctor",
        usage="%(prog)s [--deep MODEL] [options]",
        help="check this machine and, with --deep, that outputs do not depend on where weights lie",
        description="Check this machine. The exit status is 1 when something is bad; notes cost only speed or memory.",
    )
    parser.add_argument(
        "--deep",
        type=Path,
        metavar="MODEL",
        help=f"also let a model answer streamed, resident and one group at a time, which must be equal: {MODEL_HELP}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, own=("residency",))
    parser.set_defaults(command=doctor_command)


def doctor_command(options: argparse.Namespace) -> None:
    """Check, and print it. Raises PenstockError when something is bad, after that."""
    from pipeline.tools.commands.doctor_report import doctor

    doctor(options)
