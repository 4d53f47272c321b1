"""Checks on a file whether weights can be read past the page cache."""

import os
import tempfile
from pathlib import Path

from pipeline.system.page_cache import NOT_OFFERED
from pipeline.system.proc import mounts
from pipeline.tools.doctor.check import Check

BLOCKS = 16


def check_direct_reads(checkpoint: Path | None) -> Check:
    """Read a block of a checkpoint's largest file; without one, what was just written to the current folder."""
    from pipeline.checkpoints.checkpoint import open_checkpoint
    from pipeline.system.page_cache import BLOCK_BYTES

    if checkpoint is not None:
        with open_checkpoint(checkpoint, direct=False) as opened:
            largest = max(opened.files.values(), key=lambda shard: shard.size)
            return _compared(largest.path, largest.path.parent, largest.read(0, BLOCK_BYTES), BLOCK_BYTES)
    folder, content = Path.cwd(), os.urandom(BLOCKS * BLOCK_BYTES)
    try:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=".penstock-doctor-")  # noqa: SIM115
    except OSError as error:
        found = f"{folder}: {error.strerror}: nothing could be written there, and so nothing was read"
        return Check("direct reads", "note", found, "run it in a folder on the models' disk, or with --deep MODEL")
    with file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return _compared(Path(file.name), folder, content, len(content))


def _compared(file: Path, folder: Path, content: bytes, nbytes: int) -> Check:
    """Compare direct reads of so many bytes, whole blocks, with what is known to be there."""
    where = f"{folder} ({file_system(folder)})"
    try:
        read = _read_direct(file, nbytes)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        return Check(
            "direct reads",
            "note",
            f"{where} refuses them (O_DIRECT): {error.strerror}",
            "weights there go through the page cache, which is slower and takes host memory: keep them on a local disk",
        )
    if read != content:
        found = f"{where}: {len(read)} bytes past the page cache are not the {len(content)} bytes that are there"
        return Check("direct reads", "bad", found, "open models with direct_reads=False, and look after that disk")
    return Check("direct reads", "good", f"{len(read)} bytes read past the page cache in {where}, and they are right")


def _read_direct(file: Path, nbytes: int) -> bytes:
    from pipeline.devices.memory import HostMemory
    from pipeline.system.page_cache import open_direct

    descriptor = open_direct(file)
    memory = HostMemory(nbytes)
    try:
        return bytes(memory.view[: os.preadv(descriptor, [memory.view], 0)])
    finally:
        memory.free()
        os.close(descriptor)


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies in, as the kernel names it."""
    folder = folder.resolve()
    above = [mount for mount in mounts() if folder.is_relative_to(mount.point)]
    # Of two on one point the later one counts.
    deepest = max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)
    return "unknown file system" if deepest is None else deepest.kind
