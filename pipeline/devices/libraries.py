"""What the libraries of a device add to the process once they run, and keep when a model is closed."""

from collections.abc import Mapping

from pipeline.memory import resident_bytes


class Libraries:
    """Those of one kind of device, which all models of the process share.

    `whole` is what they add, by place, in bytes, before they have run. After that it is in what the process occupies:
    a model that is opened again needs as much as it did at first.
    """

    def __init__(self, **whole: int) -> None:
        self.whole: Mapping[str, int] = whole
        self._before: int | None = None

    def later(self) -> Mapping[str, int]:
        """What of it is still to come, by place, in bytes. Whatever the host has grown by counts as what has come."""
        if self._before is None:
            return self.whole
        grown = resident_bytes() - self._before
        return {**self.whole, "host": max(0, self.whole["host"] - grown)}

    def have_run(self, resident_before: int) -> None:
        """A model has computed; before it was opened the process occupied so many bytes."""
        self._before = resident_before if self._before is None else min(self._before, resident_before)
