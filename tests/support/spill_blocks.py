"""Blocks of KV as a spill file moves them, and the files that are open."""

import os
import random

from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory

BLOCK = 8192
BLOCKS = 40


def runs(*blocks: tuple[int, int]) -> list[Copy]:
    """Runs of blocks [first, end)."""
    return [Copy(first * BLOCK, first * BLOCK, (end - first) * BLOCK) for first, end in blocks]


def filled(seed: int) -> HostMemory:
    memory = HostMemory(BLOCKS * BLOCK)
    memory.view[:] = random.Random(seed).randbytes(BLOCKS * BLOCK)
    return memory


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
