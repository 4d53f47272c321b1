"""One bounded reader for the small files that another program may have written: configs, tokenizers, the index, caches.

No file makes it wait (a FIFO), no file makes it read without end (a device, a file that grows), and what is read is
never more than the limit for its kind.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import CheckpointError

CONFIG_LIMIT_BYTES = 16 << 20
"""For config.json, generation_config.json, tokenizer_config.json and the like; real ones have up to 200 kB."""
TOKENIZER_LIMIT_BYTES = 128 << 20
"""For tokenizer.json, tekken.json and tokenizer.model; real ones have up to 35 MB."""
MOST_CONTAINERS = 2_000_000
"""JSON objects and lists in one file; each takes fifty times the memory of its two bytes. Real files have 600,000."""
MOST_VALUES = 5_000_000
"""Commas in one file, each of which can part two values of 50 bytes. Real files have 2,000,000."""

NO_FOLDER = "no such folder"


class NotPlainError(OSError):
    """There is a FIFO, a device, a socket or a folder in place of a file."""


def open_plain_file(path: Path) -> BinaryIO:
    """Open `path` for reading, without waiting for the writer of a FIFO. Raises OSError."""
    return open(open_plain(path), "rb")


def open_plain(path: Path) -> int:
    """The same as a descriptor."""
    _require_plain(path, os.stat(path))  # before it is opened, which is not without effect on some devices
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _require_plain(path, os.fstat(descriptor))  # the name may have been given away in between
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_plain(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotPlainError(errno.EINVAL, "is not a regular file; put a plain file there", str(path))


@contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into a CheckpointError."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing") from error
    except NotPlainError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def require_folder(folder: Path, need: str) -> None:
    """Raise CheckpointError, which says what is needed, where no folder is, or where none can be looked for."""
    if why := why_no_folder(folder):
        raise CheckpointError(f"{folder}: {why}; need {need}")


def why_no_folder(folder: Path) -> str:
    """Why there is none; empty where there is one."""
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return NO_FOLDER
    except OSError as error:
        return f"cannot be looked into: {error.strerror}"
    if is_folder:
        return ""
    return "is a GGUF file, which is not read" if folder.suffix.lower() == ".gguf" else "is a file"


def read_small_file(path: Path, limit_bytes: int) -> bytes:
    """The whole of a plain file. Raises CheckpointError where it cannot be read, or has more than `limit_bytes`."""
    with os_errors_named(path), open_plain_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(size + 1) if size <= limit_bytes else b""
        if len(raw) > size:  # it has grown since; else no room is taken for so much
            raw += file.read(limit_bytes)
    size = max(size, len(raw))  # it may have grown
    if size > limit_bytes:
        raise CheckpointError(f"{path}: is {size} bytes long; need at most {limit_bytes}; fetch the file again")
    return raw


def read_json_file(path: Path, limit_bytes: int = CONFIG_LIMIT_BYTES) -> dict[str, Any]:
    """The JSON object in a plain file. Raises CheckpointError that names the file, and the place where it is broken."""
    return parse_object(read_small_file(path, limit_bytes), str(path))


def parse_object(raw: bytes, what: str, **hooks: Any) -> dict[str, Any]:
    """A JSON object in UTF-8, no key twice; `hooks` as for `json.loads`. Raises CheckpointError, naming `what`."""
    if raw.count(b"{") + raw.count(b"[") > MOST_CONTAINERS:  # before any of them becomes a Python object
        raise CheckpointError(f"{what}: has more than {MOST_CONTAINERS} JSON objects and lists; fetch the file again")
    if raw.count(b",") > MOST_VALUES:
        raise CheckpointError(f"{what}: has more than {MOST_VALUES} JSON values; fetch the file again")
    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=_unique, **hooks)
    except RecursionError as error:
        raise CheckpointError(f"{what}: the JSON is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{what}: broken JSON: {error}; fetch the file again") from error
    if type(parsed) is not dict:
        raise CheckpointError(f"{what}: the JSON is not an object but {type(parsed).__name__}; fetch the file again")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {name[:200]!r}")
    "".join(unique).encode()  # a lone surrogate is legal in JSON text for Python alone
    return unique
