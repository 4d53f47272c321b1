"""A budget: a fixed set of memory cells, leased out as slots. It bounds how far a line runs ahead.

Budget = moving + queued + in use, never more (rule 2). Ownership is a lease: `acquire` may wait, `release` never does.
A resident group has a cell of its own beside these, whose bytes are moved once and then found there in every pass.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from actors.core.errors import LineError, SlotError
from actors.core.event import Buffer, Clock, Event
from actors.core.message import READY, GroupKey, ended
from actors.core.trace import Trace
from actors.core.turns import Turns


@dataclass(frozen=True, slots=True)
class BudgetStatistics:
    """`held` slots are leased, `peak` the most ever; `cooling` are free, but still read. `residents` count apart."""

    capacity: int
    held: int
    peak: int
    cooling: int
    waited_seconds: float
    residents: int


@dataclass(slots=True)
class _Cell:
    """One piece of memory, and the event of the last operation on it.

    Its `home` is the kind of slot that it serves, or the key of the one group that is resident in it.
    """

    home: str | GroupKey
    index: int
    buffer: Buffer
    after: Event = READY
    kept: Event | None = None

    @property
    def resident(self) -> bool:
        return not isinstance(self.home, str)


class Slot:
    """A lease on one cell of a budget. One slot, one owner (rule 6).

    Attributes:
        after: the last reader's event. Nothing may be written into `buffer` before it (rule 3).
        filled: the event of the last operation on the memory, of this lease or, before its first, of the one before.
        filler: the name of the actor that moved the bytes here, for errors.
        source: the slot that the bytes came from, where the mover `keeps_source`.
        kept: in the cell of a resident group whose bytes an earlier lease has moved, their event; else None.
    """

    __slots__ = (
        *("_budget", "_cell", "_released"),
        *("after", "buffer", "filled", "filler", "index", "kind", "kept", "source"),
    )

    def __init__(self, budget: "Budget", cell: _Cell) -> None:
        self._budget = budget
        self._cell = cell
        self._released = False
        self.kind = cell.home if isinstance(cell.home, str) else "resident"
        self.index = cell.index
        self.buffer = cell.buffer
        self.after = cell.after
        self.kept = cell.kept
        self.filled: Event = cell.after
        self.filler = ""
        self.source: Slot | None = None

    @property
    def place(self) -> str:
        """The name of the slot's budget: a place of the device, or what a user's Mover calls its own."""
        return self._budget.name

    @property
    def is_leased(self) -> bool:
        """Whether it has not been given back; when a line stops, all are."""
        return not self._released

    @property
    def stays(self) -> bool:
        """Whether it is the cell of a resident group, the same in every pass."""
        return self._cell.resident

    def release(self, *, after: Event) -> None:
        """Give the cell back. Its next owner overwrites it only after `after`. Never waits."""
        if self._released:
            raise SlotError(f"slot {self.index} of the {self.place} budget was released twice")
        self._released = True
        self._cell.after = after
        if self._cell.resident:
            self._cell.kept = self.filled
        self._budget._take_back(self, self._cell)

    async def vacated(self) -> None:
        """Wait, on the host, until the last reader is through. Its failure is reported by the actor that started it."""
        await ended(self.after)


class Budget:
    """The cells of a place by kind, and those of its resident groups. First come, first served (rule 1)."""

    def __init__(
        self,
        name: str,
        cells: Mapping[str, Iterable[Buffer]],
        clock: Clock,
        residents: Mapping[GroupKey, Buffer] | None = None,
    ) -> None:
        self.name = name
        residents = residents or {}
        self.residents = frozenset(residents)
        self.slots: dict[str, int] = {}
        self._free: dict[str | GroupKey, deque[_Cell]] = {}
        indices = itertools.count()
        for kind, buffers in cells.items():
            self._free[kind] = deque(_Cell(kind, next(indices), buffer) for buffer in buffers)
            self.slots[kind] = len(self._free[kind])
        for group, buffer in residents.items():
            self._free[group] = deque([_Cell(group, next(indices), buffer)])
        self._held: set[Slot] = set()
        self._moving = 0
        self._peak = 0
        self._turns = Turns(clock)
        self._clock = clock
        self.trace = Trace(recording=False)
        self._counter = f"slots {name}"

    async def acquire(self, kind: str, group: GroupKey | None = None) -> Slot:
        """Wait for a free cell of `kind`, or for the resident `group`'s own. It may still be read: see `Slot.after`."""
        home = group if group is not None and group in self.residents else kind
        if home not in self._free:
            raise LineError(f"the {self.name} budget has no slots of kind {kind!r}, only {sorted(self.slots)}")
        free = self._free[home]
        await self._turns.take_turn(lambda: bool(free))
        return self._lease(free)

    def find(self, group: GroupKey) -> Slot | None:
        """Lease the slot of a resident group, if its bytes lie there and no actor waits for a slot; else None."""
        free = self._free[group] if group in self.residents else None
        if not free or free[0].kept is None or not self._turns.can_go(lambda: True):
            return None
        return self._lease(free)

    def holds(self, group: GroupKey) -> bool:
        """Whether a resident group's bytes are there already, or have begun to move there."""
        return group in self.residents and all(cell.kept is not None for cell in self._free[group])

    def held(self, kind: str) -> list[Slot]:
        """The slots of a kind that are leased now, in their order."""
        return sorted((slot for slot in self._held if slot.kind == kind), key=lambda slot: slot.index)

    def recall(self) -> None:
        """Take back every slot that is still leased. Only for a line that has stopped: no actor may hold one then."""
        for slot in list(self._held):
            slot.release(after=slot.filled)

    async def settle(self) -> None:
        """Wait until the last reader of every free cell has ended, well or not: its event only says when.

        The bytes of resident groups count as lost: which of them the failure has spoilt is not known.
        """
        for cells in self._free.values():
            for cell in cells:
                await ended(cell.after)
                cell.after, cell.kept = READY, None

    def statistics(self) -> BudgetStatistics:
        """How full the budget is, and for how long actors waited for it."""
        return BudgetStatistics(
            capacity=sum(self.slots.values()),
            held=self._moving,
            peak=self._peak,
            cooling=sum(not cell.after.done() for cells in self._free.values() for cell in cells),
            waited_seconds=self._turns.waited_seconds,
            residents=sum(map(self.holds, self.residents)),
        )

    def _lease(self, free: deque[_Cell]) -> Slot:
        cell = free.popleft()
        slot = Slot(self, cell)
        self._held.add(slot)
        self._count(not cell.resident)
        return slot

    def _take_back(self, slot: Slot, cell: _Cell) -> None:
        self._held.remove(slot)
        self._free[cell.home].append(cell)
        self._count(-(not cell.resident))
        self._turns.notify()

    def _count(self, more: int) -> None:
        self._moving += more
        self._peak = max(self._peak, self._moving)
        if self.trace.recording and more:
            self.trace.count(self._counter, self._clock(), self._moving)
