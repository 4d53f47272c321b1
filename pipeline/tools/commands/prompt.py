"""`penstock run`: where the prompt comes from."""

import argparse
import sys
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import RequestError, shown
from pipeline.tools.commands.parser import Parser

MOST_BYTES = 1 << 28
"""More than any context holds; what is longer is no prompt, and may never end."""
STDIN = "-"


def add_prompt(parser: Parser) -> None:
    """Add the options for the prompt, of which one must be given."""
    group = parser.add_argument_group("the prompt, taken as it is, with spaces and newlines at its end")
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument("--prompt", metavar="TEXT", help="the text to continue; - reads it from stdin")
    one.add_argument("--prompt-file", type=Path, metavar="FILE", help="read it from a file of UTF-8 text")
    one.add_argument("--prompt-ids", metavar="IDS", help="token ids, as 1,2,3, for a model without a tokenizer")


def read_prompt(options: argparse.Namespace) -> str | list[int]:
    """The text, or the token ids. Raises RequestError, naming the option, for what is neither, or cannot be read."""
    if options.prompt_ids is not None:
        try:
            return [int(part) for part in options.prompt_ids.split(",") if part.strip()]
        except ValueError as error:
            raise RequestError(f"--prompt-ids: need token ids, as 1,2,3; have {shown(options.prompt_ids)}") from error
    if options.prompt == STDIN or options.prompt_file == Path(STDIN):
        if sys.stdin is None:
            raise RequestError("--prompt -: stdin is closed; give the text, or --prompt-file FILE")
        if sys.stdin.isatty():
            print("reading the prompt from the terminal; Ctrl-D on a line of its own ends it", file=sys.stderr)
        return _text("stdin", sys.stdin.buffer)
    if options.prompt_file is None:
        return str(options.prompt)
    try:
        with open(options.prompt_file, "rb") as file:
            return _text(str(options.prompt_file), file)
    except OSError as error:
        raise RequestError(f"--prompt-file: {options.prompt_file}: {error.strerror}") from error


def _text(name: str, file: BinaryIO) -> str:
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RequestError(f"{name}: need a prompt of at most {MOST_BYTES} bytes, have more")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        have = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise RequestError(f"{name}: need UTF-8 text, have {have}; convert it, or give another file") from error
