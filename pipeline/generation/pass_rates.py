"""At what rates a pass is expected to move bytes and to compute, before the first one has told."""

from dataclasses import dataclass

from pipeline.devices.port import HOST, Place
from pipeline.state.kv_room import SENT_RATE, PassBytes
from pipeline.system.sizes import human_bytes

DISK_BYTES_PER_SECOND = 4e9
"""Of a disk of today."""
LINK_BYTES_PER_SECOND = SENT_RATE * DISK_BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class PassRates:
    """Bytes per second of the disk and of the link to a GPU, and `how` they are known; those that are None are assumed.

    What computing reads is assumed, too: on a GPU so many times as fast as its link, as both are of one age.
    """

    disk: float | None = None
    link: float | None = None
    how: str = "measured"

    def seconds(self, moved: PassBytes, place: Place, computed_bytes: float) -> float:
        """How long a pass takes that moves so many bytes, and computes in `place` in the time of reading so many."""
        disk, link = self.disk or DISK_BYTES_PER_SECOND, self.link or LINK_BYTES_PER_SECOND
        return max(moved.read / disk, moved.sent / link, computed_bytes / self._computing(place))

    def told(self, moved: PassBytes, place: Place) -> str:
        """Those on which passes depend that move so many bytes."""
        each = {
            "disk": (self.disk, DISK_BYTES_PER_SECOND, moved.read),
            "link": (self.link, LINK_BYTES_PER_SECOND, moved.sent),
            "computing": (None, self._computing(place), moved.read + moved.sent),
        }
        return ", ".join(
            f"{name} {human_bytes(known or assumed)}/s ({self.how if known else 'assumed'})"
            for name, (known, assumed, nbytes) in each.items()
            if nbytes
        )

    def _computing(self, place: Place) -> float:
        if place.name == HOST:
            return place.disk_speeds * DISK_BYTES_PER_SECOND
        return place.disk_speeds / SENT_RATE * (self.link or LINK_BYTES_PER_SECOND)
