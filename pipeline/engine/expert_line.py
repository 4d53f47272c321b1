"""The line on which experts travel when a router has chosen them, with slots of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from actors.core.budget import Budget
from actors.core.event import Clock
from actors.core.expert_cache import EVICTION, Found
from actors.core.expert_store import ExpertStore
from actors.core.line import Line, numbered
from actors.core.ports import IdleSource
from actors.core.trace import Trace
from actors.expert_keeper import ExpertKeeper
from actors.expert_planner import ExpertPlanner
from actors.expert_reader import ExpertReader
from actors.expert_stager import ExpertStager
from actors.expert_uploader import ExpertUploader
from pipeline.engine.actor_names import EXPERT_COUNTER
from pipeline.engine.expert_room import KIND, PLACE, ExpertRoom
from pipeline.formats.parts import expert


@dataclass(frozen=True, slots=True)
class ExpertCounters:
    """Counters of a trace for each layer: experts that it wanted, found where they are computed, and had read."""

    trace: Trace
    clock: Clock

    def __call__(self, layer: int, wanted: int, found: Sequence[Found]) -> None:
        """Count them."""
        if self.trace.recording:
            counts = {"wanted": wanted, "found": len(found[-1].hits), "read": len(found[0].misses)}
            for what, count in counts.items():
                self.trace.count(EXPERT_COUNTER.format(layer, what), self.clock(), count)


@dataclass(frozen=True, slots=True)
class ExpertLine:
    """The slots, and the store that knows what lies in them. Where there are several sections, it has its number."""

    room: ExpertRoom
    store: ExpertStore
    budgets: tuple[Budget, ...]
    source: IdleSource
    clock: Clock
    section: int | None = None

    @classmethod
    def of(
        cls,
        room: ExpertRoom,
        slots: Mapping[str, int],
        source: IdleSource,
        clock: Clock,
        section: int | None = None,
    ) -> Self:
        """Take the memory of so many slots in each place."""
        device, settings, budgets = room.device, room.settings, []
        for place in device.places:
            memory = device.host_memory if place is device.places[0] else device.device_memory
            cells = [memory(room.slot_bytes[place.name]) for _ in range(slots[place.name])]
            budgets.append(Budget(numbered(PLACE.format(place.name), section), {KIND: cells}, clock))
        chosen = settings.expert_cache
        policy = EVICTION[chosen] if isinstance(chosen, str) else chosen
        store = ExpertStore(budgets, experts=room.count, part=expert, policy=policy)
        return cls(room, store, tuple(budgets), source, clock, section)

    def line(self, trace: Trace) -> Line:
        """The actors in a row. As many messages have a slot: none that is there waits behind one that is read.

        What each layer wants and finds is counted in the trace, see `ExpertCounters`.
        """
        self.store.told = ExpertCounters(trace, self.clock)
        host, *behind = self.budgets
        queue, planner = sum(host.slots.values()), ExpertPlanner(self.store)
        return (
            Line(planner, catalog=self.room.catalog, clock=self.clock, trace=trace, number=self.section)
            .then(ExpertReader(self.source, host, self.store), queue=queue)
            .then(ExpertStager(), queue=queue)
            .then(ExpertUploader(self.room.device, behind[-1] if behind else None, self.store), queue=queue)
            .then(ExpertKeeper(self.store), queue=queue)
        )
