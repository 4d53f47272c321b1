"""Actors wait for events; here is also the clock that their times are read from."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Seconds that only rise. Virtual in a simulation."""

Buffer: TypeAlias = Any
"""A piece of memory that only the device and the source look into."""


class Event(Protocol):
    """The end of an operation on a device, a thread or a disk: a read returned, a copy landed, a kernel ended."""

    @property
    def error(self) -> BaseException | None:
        """Why the operation failed; None while it runs and when it succeeded."""

    @property
    def span(self) -> tuple[float, float] | None:
        """When the operation ran, in clock seconds; None while it runs, and when there was nothing to run."""

    def done(self) -> bool:
        """Whether the operation has ended, well or not."""

    async def wait(self) -> None:
        """Let the host wait for the end of the operation; raises its error."""
