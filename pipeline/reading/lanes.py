"""The lanes of a source, by the way in which they read."""

from pipeline.reading.aiofiles_lanes import AiofilesLanes
from pipeline.reading.preadv_lanes import PreadvLanes

LANES: dict[str, type[PreadvLanes] | type[AiofilesLanes]] = {"preadv": PreadvLanes, "aiofiles": AiofilesLanes}
"""Each is given the name that its threads begin with, the number of lanes, and the disk."""
