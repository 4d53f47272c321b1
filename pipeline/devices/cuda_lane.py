"""A stream of an NVIDIA GPU as a lane: what is short is issued where it is submitted, the rest by a thread.

A thread waits for an event only where its end was asked for: a thread that wakes for each piece of work takes the
interpreter lock from the thread that launches the next.
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future

import torch

from actors.core.chained import parts
from actors.core.event import Event
from pipeline.devices.graphs import Graphs
from pipeline.devices.lane import do_behind, require_done
from pipeline.system.threads import Threads, portable, tell

_unused_streams: "defaultdict[tuple[torch.device, str], list[torch.cuda.Stream]]" = defaultdict(list)
"""Of lanes that were closed, by device and name. The workspaces that libraries keep for each stream are used again;
and torch has 32 streams, which it gives out a second time after that."""
MOST_KEPT = 256
"""Pieces of work that a lane remembers, ended or not, before it asks whether half of them have ended: to ask about each
would take as long as to record it."""


class Timeline:
    """When events of a GPU came, in host seconds: by their distance from the last one that the host has seen end."""

    def __init__(self, device: torch.device) -> None:
        first = torch.cuda.Event(enable_timing=True)
        first.record(torch.cuda.current_stream(device))
        first.synchronize()
        self.seen(first, None)

    def seen(self, event: torch.cuda.Event, owner: "CudaEvent | None") -> None:
        """Take note that the event has just ended; while its owner is held it is not recorded once more."""
        self._latest = event, time.perf_counter(), owner

    def seconds(self, event: torch.cuda.Event) -> float:
        """When an event came that has come."""
        latest, seen, _owner = self._latest
        milliseconds: float = event.elapsed_time(latest)
        return seen - milliseconds / 1000


class CudaEvent:
    """The event of what a piece of work put on its stream. Streams can wait for it once it is `issued`.

    `issued` is None where that was done at once. A piece of work with a `failure` has left nothing on its stream.
    When nobody holds it any more its lane records its two events anew: making them takes longer than recording them.
    """

    def __init__(self, lane: "CudaLane", issued: "Future[None] | None") -> None:
        self.lane = lane
        self.issued = issued
        self.started, self.ended = lane.two_events()
        self.failure: Exception | None = None
        self._over = False
        self._span: tuple[float, float] | None = None
        self._waiting: list[Callable[[], None]] = []

    def __del__(self) -> None:
        self.lane.unheld.append((self.started, self.ended))

    @property
    def error(self) -> BaseException | None:
        """Why the work failed; None while it runs and when it succeeded."""
        return self.failure if self.done() else None

    @property
    def span(self) -> tuple[float, float] | None:
        """When the work ran; None while it runs, and where it was not issued."""
        if self._span is None and self.done() and self.failure is None:
            seconds = self.lane.timeline.seconds
            self._span = seconds(self.started), seconds(self.ended)
        return self._span

    def is_issued(self) -> bool:
        """Whether streams can wait for it, or nothing of it will come."""
        return self.issued is None or self.issued.done()

    async def until_issued(self) -> None:
        """Wait on the event loop until streams can wait for it."""
        if self.issued is not None and not self.issued.done():
            loop, over = asyncio.get_running_loop(), asyncio.Event()
            self.issued.add_done_callback(lambda _: tell(loop, over))
            await over.wait()

    def issue_failure(self) -> Exception | None:
        """Why nothing of it was issued; waits until that is known."""
        if self.issued is not None:
            self.issued.result()
        return self.failure

    def done(self) -> bool:
        """Whether the work has ended; the GPU is asked."""
        if not self._over and self.is_issued():
            self._look(self.ended.query)
        return self._over

    async def wait(self) -> None:
        """Wait on the event loop; raises the work's error. A cancelled wait leaves the work alone."""
        if not self.done():
            loop, over = asyncio.get_running_loop(), asyncio.Event()
            self._waiting.append(functools.partial(tell, loop, over))
            self.lane.await_end(self)
            await over.wait()
        if self.failure is not None:
            raise self.failure

    def await_end(self) -> None:
        """Let this thread wait for the end, and wake the tasks that wait for it."""
        if self.issue_failure() is None and not self.done():
            self._look(self._synchronize)
        while self._waiting:
            self._waiting.pop()()

    def _synchronize(self) -> bool:
        self.ended.synchronize()
        self.lane.timeline.seen(self.ended, self)
        return True

    def _look(self, has_ended: Callable[[], bool]) -> None:
        try:
            self._over = self.failure is not None or has_ended()
        except Exception as error:
            self.failure, self._over = error, True


class CudaLane:
    """One stream. A wait of this stream for another one's event is issued only after that event was recorded:
    waiting for a CUDA event that was never recorded returns at once.
    """

    def __init__(self, name: str, device: torch.device, timeline: Timeline) -> None:
        self.timeline = timeline
        self.unheld: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._device = device
        self._unused = _unused_streams[device, name]
        self._stream = self._unused.pop() if self._unused else torch.cuda.Stream(device)
        self._graphs = Graphs()
        self._issuer = Threads(1, f"penstock-{name}", functools.partial(torch.cuda.set_stream, self._stream))
        self._waiter = Threads(1, f"penstock-{name}-wait")
        self._lock = threading.Lock()
        self._handed_over = 0
        self._unended: deque[CudaEvent] = deque()

    def submit(
        self,
        work: Callable[[], object],
        after: Sequence[Event],
        vacant: Event | None = None,
        *,
        short: bool = False,
        repeats: Hashable | None = None,
    ) -> CudaEvent:
        """Issue `work` behind every event in `after`; if one of them failed, fail with its error instead.

        It is issued behind `vacant` too, however that ended. What is `short`, or captured, is issued at once unless
        something before it is not issued yet; the rest by the lane's thread.
        """
        if repeats is not None:
            replay = self._graphs.replay(repeats)
            short, work = replay is not None, replay or functools.partial(self._graphs.run, repeats, work)
        if short and not self._handed_over and all(map(_is_issued, parts(vacant, *after))):
            event = CudaEvent(self, None)
            self._issue_here(work, after, vacant, event)
        else:
            event = CudaEvent(self, Future())
            self._issuer.submit(self._issue_handed_over, work, after, vacant, event)
            with self._lock:
                self._handed_over += 1
        self._unended.append(event)
        if len(self._unended) > MOST_KEPT:
            self._forget_half()
        return event

    def two_events(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """For the start and for the end of a piece of work."""
        with contextlib.suppress(IndexError):
            return self.unheld.popleft()
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True, blocking=True)

    def await_end(self, event: CudaEvent) -> None:
        """Let a thread wait for the end of `event`, and wake the tasks that wait for it."""
        self._waiter.submit(self._await_in_turn, event)

    def close(self) -> None:
        """End both threads once they have run what was submitted; waits for it."""
        self._issuer.shutdown(wait=True)
        self._waiter.shutdown(wait=True)
        with contextlib.suppress(RuntimeError):
            self._stream.synchronize()
        self._graphs.clear()
        self._unended.clear()
        self._unused.append(self._stream)

    def _issue_here(
        self, work: Callable[[], object], after: Sequence[Event], vacant: Event | None, event: CudaEvent
    ) -> None:
        here, previous = torch.cuda.current_device(), torch.cuda.current_stream(self._device)
        torch.cuda.set_stream(self._stream)  # makes its device the current one too
        try:
            self._issue(work, after, vacant, event)
        finally:
            torch.cuda.set_stream(previous)
            if here != self._device.index:
                torch.cuda.set_device(here)

    def _issue_handed_over(
        self, work: Callable[[], object], after: Sequence[Event], vacant: Event | None, event: CudaEvent
    ) -> None:
        self._issue(work, after, vacant, event)
        with self._lock:
            self._handed_over -= 1
        if event.issued is not None:
            event.issued.set_result(None)

    def _issue(
        self, work: Callable[[], object], after: Sequence[Event], vacant: Event | None, event: CudaEvent
    ) -> None:
        try:
            # Work that failed before it was issued, or while it was, has left nothing on its stream.
            for reader in parts(vacant):
                if isinstance(reader, CudaEvent) and reader.issue_failure() is None:
                    self._come_behind(reader)
            for earlier in parts(*after):
                if not isinstance(earlier, CudaEvent):
                    require_done(earlier)
                elif (failure := earlier.issue_failure()) is None:
                    self._come_behind(earlier)
                else:
                    raise failure
            event.started.record(self._stream)
            do_behind(after, work)
            event.ended.record(self._stream)
        except BaseException as error:
            # Kernels that were launched before the failure may still run on the slot.
            with contextlib.suppress(RuntimeError):
                self._stream.synchronize()
            event.failure = portable(error)
            if event.issued is None and not isinstance(error, Exception):
                raise  # on the thread of the event loop it is not this lane's

    def _come_behind(self, earlier: CudaEvent) -> None:
        if earlier.lane is not self and not earlier.done():
            self._stream.wait_event(earlier.ended)

    def _await_in_turn(self, event: CudaEvent) -> None:
        """Wait for the events before it first: someone may ask for one of them while this thread waits."""
        while not event.done():
            (self._first_unended() or event).await_end()
        event.await_end()

    def _forget_half(self) -> None:
        with self._lock:
            half = len(self._unended) // 2
            if half and self._unended[half - 1].done():
                for _ in range(half):
                    self._unended.popleft()

    def _first_unended(self) -> CudaEvent | None:
        """The first event of the lane that has not ended; those before it are forgotten."""
        with self._lock:
            while self._unended and self._unended[0].done():
                self._unended.popleft()
            return self._unended[0] if self._unended else None


def _is_issued(event: Event | None) -> bool:
    return not isinstance(event, CudaEvent) or event.is_issued()
