"""The lanes of a source, by the way in which they read."""

from pipeline.reading.aiofiles_lanes import AiofilesLanes
from pipeline.reading.preadv_lanes import PreadvLanes
from pipeline.reading.reading_lane import Disk, ReadingLane, ReadingLanes

LANES: dict[str, type[PreadvLanes] | type[AiofilesLanes]] = {"preadv": PreadvLanes, "aiofiles": AiofilesLanes}


def open_lanes(name: str, way: str, count: int, disk: Disk) -> ReadingLanes[ReadingLane]:
    """`count` lanes of one way, whose threads are called by `name`."""
    return LANES[way](name, count, disk)
