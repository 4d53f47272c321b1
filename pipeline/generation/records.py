"""Which work a device records, to launch it as one piece when it comes again."""

from collections.abc import Hashable

from pipeline.devices.port import Device


class Records:
    """The keys of what is recorded, of which there are at most as many as the plan counts memory for.

    Attention has those for short contexts and for long ones, a group that moves has some for each slot in which it
    comes; the embedding and the choice of tokens have a few, too.
    """

    def __init__(self, device: Device, groups: int, micro_batches: int) -> None:
        self._left = self.most(device, groups, micro_batches)
        self._keys: set[Hashable] = set()

    @staticmethod
    def most(device: Device, groups: int, micro_batches: int) -> int:
        """How many there are at most."""
        return 2 * groups * len(device.repeated_rows) * micro_batches

    def admit(self, key: Hashable, groups: int = 1) -> Hashable | None:
        """The key, if its work, of so many groups, is or may be recorded; else None."""
        if key not in self._keys and self._left >= groups:
            self._keys.add(key)
            self._left -= groups
        return key if key in self._keys else None
