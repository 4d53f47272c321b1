"""What is read through the page cache does not stay there, however large the folios are that hold it."""

import asyncio
import ctypes
import os
from pathlib import Path
from random import Random

import pytest

from pipeline.checkpoints.shard import Shard
from pipeline.devices.memory import HostMemory
from pipeline.groups.layout import HostLayout, Window
from pipeline.reading.reading import MIB, Reading
from pipeline.reading.source import CheckpointSource

CACHESTAT = 451
FOLIO_BYTES = 64 << 10
BYTES, GROUP_BYTES = 24 * MIB, 6 * MIB


def cached_bytes(file: Path) -> int:
    """Skips the test where the kernel, older than 6.5, cannot tell."""
    whole, counts = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    with open(file, "rb") as opened:
        if ctypes.CDLL(None, use_errno=True).syscall(CACHESTAT, opened.fileno(), whole, counts, 0):
            pytest.skip("no cachestat")
    return counts[0] * os.sysconf("SC_PAGESIZE")


def drop(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of four groups, of which nothing is cached."""
    file = tmp_path / "large"
    file.write_bytes(Random(0).randbytes(MIB) * (BYTES // MIB))
    drop(file)
    if cached_bytes(file):
        pytest.skip("this file system keeps what it is told to drop")
    return file


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("chunk_bytes", [MIB, 3 * MIB - 4096])
@pytest.mark.parametrize("before", ["nothing cached", "cached in large folios"])
async def test_nothing_that_was_read_stays(before: str, chunk_bytes: int, lanes: int, way: str, large: Path) -> None:
    layouts = {
        (layer, "attn"): HostLayout((Window(large, layer * GROUP_BYTES, GROUP_BYTES, 0),), {}, GROUP_BYTES, GROUP_BYTES)
        for layer in range(BYTES // GROUP_BYTES)
    }
    if before == "cached in large folios":
        assert len(await asyncio.to_thread(large.read_bytes)) == BYTES
        assert await asyncio.to_thread(cached_bytes, large) == BYTES
    shard = await asyncio.to_thread(Shard, large)
    source = CheckpointSource(layouts, {large: shard}, Reading(way, direct=False, lanes=lanes, chunk_bytes=chunk_bytes))
    slot = await asyncio.to_thread(HostMemory, GROUP_BYTES)
    for layer in range(BYTES // GROUP_BYTES):
        await source.read_into((layer, "attn"), slot)
    await source.aclose()
    await asyncio.to_thread(shard.close)
    assert await asyncio.to_thread(cached_bytes, large) <= FOLIO_BYTES, (
        "one that another lane reads while it is dropped may stay, once in 200 runs"
    )
