"""`penstock verify MODEL`: its options. What it does is imported when it runs, so that `--help` is instant."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.tools.commands.models import MODEL_HELP


def add_verify(commands: Any) -> None:
    """Add the command's parser to `commands`, which is what `add_subparsers` gave."""
    parser = commands.add_parser(
        "verify",
        help="compare the files of a checkpoint with what is known of them, to find damage on the disk",
        description="Read the files of a checkpoint folder from the disk and compare them with what is known of them: "
        "the names that the Hugging Face cache gives, the notes of downloads, digests in safetensors headers, and a "
        "file of sums. The exit status is 0 when all weights are good, 1 when a file is damaged, and 2 when there is "
        "nothing to compare some weights with.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--write", action="store_true", help="write the file of sums, to compare with later")
    parser.add_argument(
        "--sums",
        type=Path,
        metavar="FILE",
        help="the file of sums, as sha256sum writes it; default MODEL/penstock.sha256",
    )
    parser.set_defaults(command=verify_command)


def verify_command(options: argparse.Namespace) -> int:
    """Compare, and print it; gives the exit status. Raises PenstockError when a file is damaged, after that."""
    from pipeline.tools.commands.progress import Progress

    Progress().say(f"looking at {options.model}")  # what comes next may take a second or two to import
    from pipeline.tools.commands.verify_report import verify_and_report

    return verify_and_report(options)
