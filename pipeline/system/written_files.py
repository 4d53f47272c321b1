"""One writer for every file that is made here: traces, reports, checksums, caches.

Only a plain file is replaced, and only by one that is complete. Links are followed. What else may lie there is written
into where that does no harm, a terminal or /dev/null, and refused otherwise.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ConfigError

MOST_LINKS = 40
DESCRIPTORS = Path("/proc/self/fd")
"""Where /dev/stdout and /dev/fd lead."""
_numbers = itertools.count()


def check_writable(path: Path) -> None:
    """Refuse before the work what could not be written after it. Raises ConfigError."""
    try:
        target, descriptor = _target(path)
        if descriptor is not None:
            os.close(_opened_again(descriptor))
        elif _is_plain(target):
            folder = target.parent
            if not folder.is_dir():
                raise ConfigError(f"{path}: there is no folder {folder}; make it, or write somewhere else")
            if not os.access(folder, os.W_OK | os.X_OK):
                fault = f"may not be written: no file can be made in {folder}"
                raise ConfigError(f"{path}: {fault}; change its permissions, or write somewhere else")
        elif not os.access(target, os.W_OK):
            raise ConfigError(f"{path}: may not be written; write somewhere else")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; write somewhere else") from error


def is_plain(path: Path) -> bool:
    """Whether a plain file is there, or nothing. Raises ConfigError as `check_writable`."""
    check_writable(path)
    target, descriptor = _target(path)
    return descriptor is None and _is_plain(target)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write. In the place of a plain file, or of nothing, it appears when the `with` ends without an error.

    Raises OSError where it cannot be written, ConfigError for what may not be written into.
    """
    target, descriptor = _target(path)
    if descriptor is not None:
        sys.stdout.flush()  # what was printed before comes before
        with open(_opened_again(descriptor), "wb") as file:
            yield file
    elif _is_plain(target):
        with _replacing(target) as file:
            yield file
    else:
        with open(os.open(target, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC), "wb") as file:
            yield file


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """Beside it, under a name of a length that is allowed whatever the target's is."""
    new = target.with_name(f".penstock-{os.getpid()}-{next(_numbers)}.partial")
    with contextlib.ExitStack() as undone:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        undone.callback(new.unlink)
        with open(descriptor, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(os.stat(target).st_mode))
            yield file
        if not _is_plain(target):  # it may have become something else meanwhile
            raise OSError(errno.EEXIST, "is no plain file any more", str(target))
        os.replace(new, target)
        undone.pop_all()


def _opened_again(descriptor: int) -> int:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "is open for reading only")
    return os.dup(descriptor)


def _target(path: Path) -> tuple[Path, int | None]:
    """Where all links lead that may lie at `path`; or the descriptor of this process that they lead to."""
    for _ in range(MOST_LINKS):
        folder = Path(os.path.realpath(path.parent))
        if folder == Path(os.path.realpath(DESCRIPTORS)) and path.name.isdecimal():
            return path, int(path.name)
        path = folder / path.name if path.name else folder
        if not path.is_symlink():
            return path, None
        path = folder / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _is_plain(target: Path) -> bool:
    """Whether there is a plain file or nothing. Raises ConfigError for what is neither that nor a terminal's kind."""
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{target}: is a folder; give the name of a file")
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        raise ConfigError(f"{target}: is no plain file, which is all that is replaced; give the name of a file")
    return stat.S_ISREG(mode)
