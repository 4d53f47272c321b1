"""What the libraries of a device add to the process once they run, and keep when a model is closed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.devices.port import HOST
from pipeline.system.host_memory import resident_bytes
from pipeline.system.limits import process_uses, threads_have_run
from pipeline.system.promises import open_models_take


class Libraries:
    """The libraries of one kind of device, which all models of the process share.

    `whole` is what they add, by place, in bytes, before they have run. Afterwards the process occupies it already: a
    model that is opened again needs as much in all as it did at first.
    """

    def __init__(self, **whole: int) -> None:
        self.whole: Mapping[str, int] = whole
        self._before: int | None = None

    def later(self) -> Mapping[str, int]:
        """The bytes by place that the libraries have still to add.

        What the process has grown by, without its open models, counts as added by them.
        """
        if self._before is None:
            return self.whole
        _, touched = open_models_take(HOST)
        grown = max(0, resident_bytes() - self._before - touched)
        return {**self.whole, HOST: max(0, self.whole[HOST] - grown)}

    def have_run(self, before: "Before") -> None:
        """A model has computed, for which `before` was taken before it was opened."""
        self._before = before.resident if self._before is None else min(self._before, before.resident)
        threads_have_run(before.uses)


@dataclass(frozen=True, slots=True)
class Before:
    """What the process occupies, and what counts for its limits, in bytes, when it is about to open a model."""

    resident: int = field(default_factory=resident_bytes)
    uses: Mapping[str, int] = field(default_factory=process_uses)
