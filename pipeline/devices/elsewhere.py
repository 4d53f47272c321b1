"""A device that is planned for, and need not be here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pipeline.devices.open import PlannedDevice


@dataclass(frozen=True, slots=True)
class DeviceElsewhere:
    """What a memory plan asks of a device, as numbers; `nbytes` of memory of its own, None where it has none."""

    unified: bool
    packed: bool
    loads_later: Mapping[str, int]
    nbytes: int | None

    @classmethod
    def like(cls, device: PlannedDevice, nbytes: int | None) -> Self:
        """The same device with that much memory."""
        return cls(device.unified, device.packed, device.loads_later, nbytes)

    @property
    def pools(self) -> Mapping[str, str]:
        """No model is open on it."""
        return {}

    def memory_bytes(self) -> tuple[int, int]:
        """All of it is free."""
        return self.nbytes or 0, self.nbytes or 0
