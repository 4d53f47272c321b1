"""What other programs cost a test: how long its threads waited for a core."""

import contextlib
from pathlib import Path


def queued_seconds(threads: str = "thread-self") -> float:
    """How long this thread, or `self/task/*`, has waited for a core: on a busy machine that is not the test's fault."""
    waited, process = 0.0, Path("/proc")
    every = process.glob(f"{threads}/schedstat") if "*" in threads else [process / threads / "schedstat"]
    for schedule in every:
        with contextlib.suppress(OSError):  # a thread that has just ended
            waited += int(schedule.read_text().split()[1]) / 1e9
    return waited
