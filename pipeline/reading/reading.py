"""How the disk is read: a few numbers that hold for as long as a model is open."""

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.system.page_cache import BLOCK_BYTES

MIB = 1 << 20
WAYS = ("preadv", "aiofiles")
"""The better first: both are as fast, but `preadv` leaves more of the event loop's time to others."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the disk is read.

    Attributes:
        way: "preadv" (a lane's thread reads all that it can get of a group) or "aiofiles" (the event loop asks the
            thread for each read).
        direct: past the page cache (O_DIRECT).
        lanes: reads in flight at a time.
        chunk_bytes: the size of one, a multiple of 4096.
    """

    way: str = WAYS[0]
    direct: bool = True
    lanes: int = 4
    chunk_bytes: int = 8 * MIB

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ConfigError(f"way={self.way!r}: need one of {', '.join(WAYS)}")
        if self.lanes < 1 or self.chunk_bytes < BLOCK_BYTES or self.chunk_bytes % BLOCK_BYTES:
            need = f"1 lane or more, and chunks of {BLOCK_BYTES} bytes or a multiple of that"
            raise ConfigError(f"lanes={self.lanes}, chunk_bytes={self.chunk_bytes}: need {need}")

    def __str__(self) -> str:
        kind = "direct" if self.direct else "buffered"
        lanes = "1 lane" if self.lanes == 1 else f"{self.lanes} lanes"
        return f"{self.way} · {kind} · {lanes} x {self.chunk_bytes / MIB:g} MiB"


DEFAULT = Reading()
