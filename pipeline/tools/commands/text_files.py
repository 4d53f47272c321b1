"""Texts that commands are given as files."""

import argparse
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import RequestError

MOST_BYTES = 1 << 28
"""More than any context holds; what is longer is no prompt, and may never end."""


def chat_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that --template stands for. Raises RequestError where it cannot be read."""
    return {"chat_template": text_of_file("--template", options.template)} if options.template is not None else {}


def text_of_file(option: str, path: Path) -> str:
    """The UTF-8 text of a file. Raises RequestError, naming the option."""
    try:
        with open(path, "rb") as file:
            return text_of(str(path), file)
    except OSError as error:
        raise RequestError(f"{option}: {path}: {error.strerror}") from error


def text_of(name: str, file: BinaryIO) -> str:
    """The UTF-8 text of an open file. Raises RequestError with its name."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RequestError(f"{name}: need a prompt of at most {MOST_BYTES} bytes, have more")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        have = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise RequestError(f"{name}: need UTF-8 text, have {have}; convert it, or give another file") from error
