"""What bounds it: a budget is a fixed set of memory cells, leased out as slots.

Budget = moving + queued + in use, never more (rule 2). Ownership is a lease: `acquire` may wait, `release` never does.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from actors.core.errors import LineError, SlotError
from actors.core.message import READY, ended
from actors.core.ports import Buffer, Clock, Event
from actors.core.trace import Trace
from actors.core.turns import Turns


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """`held` slots are leased now, `peak` the most ever; `cooling` are free, but their last reader still runs."""

    capacity: int
    held: int
    peak: int
    cooling: int
    granted: int
    waited_seconds: float


@dataclass(slots=True)
class _Cell:
    """One piece of memory, and the event of whoever touched it last."""

    kind: str
    index: int
    buffer: Buffer
    after: Event = READY


class Slot:
    """A lease on one cell of a budget. One slot, one owner (rule 6).

    Attributes:
        after: the last reader's event. Nothing may be written into `buffer` before it (rule 3).
        filled: the event after which nobody of this or the last lease uses the memory any more.
        filler: the name of the actor that moved them, for errors.
        source: the slot that the bytes came from, where it is kept to take them back.
    """

    __slots__ = ("_budget", "_cell", "_released", "after", "buffer", "filled", "filler", "index", "kind", "source")

    def __init__(self, budget: "Budget", cell: _Cell) -> None:
        self._budget = budget
        self._cell = cell
        self._released = False
        self.kind = cell.kind
        self.index = cell.index
        self.buffer = cell.buffer
        self.after = cell.after
        self.filled: Event = cell.after
        self.filler = ""
        self.source: Slot | None = None

    @property
    def place(self) -> str:
        """The name of the budget that the slot belongs to: "host" or "device"."""
        return self._budget.name

    def release(self, *, after: Event) -> None:
        """Give the cell back. Its next owner overwrites it only after `after`. Never waits."""
        if self._released:
            raise SlotError(f"slot {self.index} of the {self.place} budget was released twice")
        self._released = True
        self._cell.after = after
        self._budget._take_back(self, self._cell)

    async def vacated(self) -> None:
        """Wait, on the host, until the last reader is through. Its failure is its own to report."""
        await ended(self.after)


class Budget:
    """The cells of one place, by kind. Slots are granted strictly first come, first served (rule 1)."""

    def __init__(self, name: str, cells: Mapping[str, Iterable[Buffer]], clock: Clock) -> None:
        self.name = name
        self._free: dict[str, deque[_Cell]] = {}
        index = 0
        for kind, buffers in cells.items():
            self._free[kind] = deque()
            for buffer in buffers:
                self._free[kind].append(_Cell(kind, index, buffer))
                index += 1
        self.slots: Mapping[str, int] = {kind: len(free) for kind, free in self._free.items()}
        self._capacity = index
        self._held: set[Slot] = set()
        self._peak = 0
        self._granted = 0
        self._turns = Turns(clock)
        self._clock = clock
        self.trace = Trace(recording=False)
        self._counter = f"slots {name}"

    async def acquire(self, kind: str) -> Slot:
        """Wait for a free cell of `kind`. Its memory may still be read: see `Slot.after`."""
        if kind not in self._free:
            raise LineError(f"the {self.name} budget has no slots of kind {kind!r}, only {sorted(self._free)}")
        free = self._free[kind]
        await self._turns.take_turn(lambda: bool(free))
        slot = Slot(self, free.popleft())
        self._held.add(slot)
        self._granted += 1
        self._peak = max(self._peak, len(self._held))
        self._count()
        self._turns.notify()
        return slot

    def recall(self) -> None:
        """Take back every slot that is still leased. Only for a line that has stopped: nobody may hold one then."""
        for slot in list(self._held):
            slot.release(after=slot.filled)

    async def settle(self) -> None:
        """Wait for the last reader of every free cell. How it ended was its own affair: events order, no more."""
        for cells in self._free.values():
            for cell in cells:
                await ended(cell.after)
                cell.after = READY

    def statistics(self) -> BudgetStatistics:
        """How full the budget is, and for how long somebody waited for it."""
        cooling = sum(not cell.after.done() for cells in self._free.values() for cell in cells)
        held = len(self._held)
        return BudgetStatistics(self._capacity, held, self._peak, cooling, self._granted, self._turns.waited_seconds)

    def _take_back(self, slot: Slot, cell: _Cell) -> None:
        self._held.remove(slot)
        self._free[cell.kind].append(cell)
        self._count()
        self._turns.notify()

    def _count(self) -> None:
        if self.trace.recording:
            self.trace.count(self._counter, self._clock(), len(self._held))
