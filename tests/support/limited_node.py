"""A node of a cluster whose disk and memory are limited, though others share its machine.

`insert={"disk_reader": [LimitedDisk]}` lets each section read at a rate of its own, in bytes per second, and puts its
process into a control group (version 1), which ends it where what it takes from then on is more than that.
"""

import asyncio
import os
from pathlib import Path

from actors.core.budget import Slot
from actors.core.message import Message
from actors.core.stage import Stage

BYTES_PER_SECOND = float(os.environ.get("NODE_BYTES_PER_SECOND", "0"))
MEMORY_BYTES = int(os.environ.get("NODE_MEMORY_BYTES", "0"))
GROUPS = Path("/sys/fs/cgroup/memory")


class LimitedDisk(Stage):
    """Holds each group back until a disk of this rate would have read it. Reads are real, and much faster here."""

    name = "limited_disk"

    def __init__(self) -> None:
        super().__init__()
        self._read_until = 0.0
        if MEMORY_BYTES:
            self._limit_memory()

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await message.event.wait()
        loop = asyncio.get_running_loop()
        nbytes = sum(copy.length for copy in self.catalog.copies(message.key))
        self._read_until = max(self._read_until, loop.time()) + nbytes / BYTES_PER_SECOND
        await asyncio.sleep(self._read_until - loop.time())
        return message

    def _limit_memory(self) -> None:
        group = GROUPS / f"penstock-{os.getpid()}"
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
        (group / "cgroup.procs").write_text(str(os.getpid()))
