"""Kernels of numba that another process compiles: compiling holds the interpreter lock, half a second at a time."""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ResourceError

logger = logging.getLogger("penstock")
LONGEST_SECONDS = 300.0


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Raises ResourceError with what to do where what has been compiled cannot be kept."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"numba could not keep the kernels that it compiled: {error}; make room there, or name another folder by "
            "the environment variable NUMBA_CACHE_DIR"
        ) from error


@keeping()
def load(kernel: Any, signature: Any, source: str) -> None:
    """Make a kernel ready to be called, from numba's cache on the disk, which another process has filled if need be.

    `source` is what that runs: it compiles the same kernel for the same signature. Where that fails it is compiled
    here, and the log says why.
    """
    if kernel._cache.load_overload(signature, kernel.targetctx) is None and (failure := _run(source)):
        logger.warning(
            "numba compiles a kernel in this process, whose other threads stand still meanwhile, as one of its own "
            "could not: %s",
            failure,
        )
    kernel.compile(signature)


def _run(source: str) -> str:
    """Run Python elsewhere, with what is imported here; returns what was wrong, nothing where all was well."""
    if not sys.executable:
        return "this Python has no executable of its own"
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    try:
        subprocess.run(
            [sys.executable, "-P", "-c", source],  # not from the current directory, unless that is on the path here
            env={**os.environ, **paths},
            capture_output=True,
            timeout=LONGEST_SECONDS,
            check=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        return f"it ended with {error.returncode}: {error.stderr.strip().splitlines()[-1:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return ""
