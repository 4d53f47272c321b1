"""A checkpoint folder that is being written: it has its name when it is complete, and is gone when it fails."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.system.sizes import human_bytes


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which is renamed to it at the end of the `with`, or removed when that fails.

    Raises ConfigError where something is at `out`, but for an empty folder, or is left from a run that was killed.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not an empty folder; choose another name or remove it")
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{partial}: is left from a run that was killed, or still runs; remove it") from error
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise


def check_space(folder: Path, need_bytes: int, instead: str) -> None:
    """Raise ConfigError where the disk of a `new_folder` has too little room; `instead` is what helps beside room."""
    have_bytes = shutil.disk_usage(folder).free
    if have_bytes < need_bytes:
        raise ConfigError(
            f"{folder.parent}: the disk is too full: need {need_bytes} bytes ({human_bytes(need_bytes)}), have "
            f"{have_bytes} ({human_bytes(have_bytes)}); make room, or {instead}"
        )
