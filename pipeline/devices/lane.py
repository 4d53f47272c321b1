"""A lane: one thread that runs pieces of work strictly in order."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

import torch

from actors.core.chained import parts
from actors.core.event import Event
from pipeline.system.threads import Threads, portable, tell


class LaneEvent:
    """The event of one piece of work on a lane."""

    def __init__(self, future: "Future[None]") -> None:
        self.future = future
        self.span: tuple[float, float] | None = None

    @property
    def error(self) -> BaseException | None:
        """Why the work failed; None while it runs and when it succeeded."""
        return self.future.exception() if self.future.done() else None

    def done(self) -> bool:
        """Whether the work has ended."""
        return self.future.done()

    async def wait(self) -> None:
        """Wait on the event loop; raises the work's error. A cancelled wait leaves the work alone."""
        if not self.future.done():
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            self.future.add_done_callback(lambda _: tell(loop, ended))
            await ended.wait()
        self.future.result()


class Lane:
    """One thread, first in first out.

    Before anything else it asks torch how many threads compute: torch passes the number that the program has set on to
    OpenMP anew in each thread, and only when asked. A matrix product does not ask, and would take every core.
    """

    def __init__(self, name: str) -> None:
        self._executor = Threads(1, f"penstock-{name}", torch.get_num_threads)

    def submit(self, work: Callable[[], object], after: Sequence[Event], vacant: Event | None = None) -> LaneEvent:
        """Run `work` once every event in `after` is done; if one of them failed, fail with its error instead.

        `vacant` is waited for too, however it ends.
        """
        event = LaneEvent(Future())
        self._executor.submit(_run, work, after, vacant, event)
        return event

    def close(self) -> None:
        """Let the thread end once it has run what was submitted; waits for it."""
        self._executor.shutdown(wait=True)


def _run(work: Callable[[], object], after: Sequence[Event], vacant: Event | None, event: LaneEvent) -> None:
    try:
        for reader in parts(vacant):
            if isinstance(reader, LaneEvent):
                reader.future.exception()
        for earlier in parts(*after):
            if isinstance(earlier, LaneEvent):
                earlier.future.result()
            else:
                require_done(earlier)
        started = time.perf_counter()
        do_behind(after, work)
        event.span = (started, time.perf_counter())
    except BaseException as error:
        event.future.set_exception(portable(error))
    else:
        event.future.set_result(None)


_behind = threading.local()


def do_behind(after: Sequence[Event], work: Callable[[], object]) -> None:
    """Do the work of a lane, or issue it, as what comes behind these events."""
    _behind.events = after
    try:
        work()
    finally:
        _behind.events = ()


def comes_behind(event: Event) -> bool:
    """Whether this thread now does work of a lane that was launched behind the event, though it may not be done."""
    return any(one is event for one in getattr(_behind, "events", ()))


def require_done(event: Event) -> None:
    """Refuse an event that no lane can wait for; raise its error if it failed."""
    if not event.done():
        raise TypeError(f"a device can wait only for its own events and for what is done, not for {event!r}")
    if event.error is not None:
        raise event.error


class Closable(Protocol):
    """What `Lanes` asks of a lane."""

    def close(self) -> None:
        """End the lane's threads."""


AnyLane = TypeVar("AnyLane", bound=Closable)


class Lanes(Generic[AnyLane]):
    """The lanes of a device, made when they are first used."""

    def __init__(self, make: Callable[[str], AnyLane]) -> None:
        self._make = make
        self._lanes: dict[str, AnyLane] = {}

    def __getitem__(self, name: str) -> AnyLane:
        if name not in self._lanes:
            self._lanes[name] = self._make(name)
        return self._lanes[name]

    def close(self) -> None:
        """Run every lane to its end."""
        while self._lanes:
            self._lanes.popitem()[1].close()
