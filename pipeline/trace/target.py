"""Where a trace or a report is to be written: looked at before the work, so that nothing is lost after it."""

import os
from pathlib import Path

from pipeline.errors import ConfigError


def check_writable(path: Path) -> None:
    """Raise ConfigError where no file of that name can be made."""
    folder = path.parent
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    if not folder.is_dir():
        raise ConfigError(f"{path}: there is no folder {folder}; make it, or write somewhere else")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{path}: may not be written; change its permissions, or write somewhere else")
