"""The line on which experts travel when a router has chosen them, with slots of its own."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from actors.core.budget import Budget, Slot
from actors.core.event import Buffer, Clock, Event
from actors.core.expert_cache import EVICTION, Found
from actors.core.expert_store import ExpertStore
from actors.core.line import Line, numbered
from actors.core.message import Message
from actors.core.ports import IdleSource
from actors.core.trace import Meter, Trace
from actors.expert_keeper import ExpertKeeper
from actors.expert_planner import ExpertPlanner
from actors.expert_reader import ExpertReader
from actors.expert_uploader import ExpertUploader
from pipeline.engine.actor_names import EXPERT_COUNTER, EXPERT_CPU
from pipeline.engine.expert_room import KIND, PLACE, ExpertRoom
from pipeline.formats.parts import expert

if TYPE_CHECKING:
    from pipeline.devices.memory import HostMemory


@dataclass(frozen=True, slots=True)
class ExpertCounters:
    """Counters of a trace for each layer: experts that it wanted, found where they are computed, had read, and left to
    the CPU.
    """

    trace: Trace
    clock: Clock

    def __call__(self, layer: int, wanted: int, found: Sequence[Found], on_cpu: int) -> None:
        """Count them."""
        if self.trace.recording:
            counts = {"wanted": wanted, "found": len(found[-1].hits), "read": len(found[0].misses), "cpu": on_cpu}
            for what, count in counts.items():
                self.trace.count(EXPERT_COUNTER.format(layer, what), self.clock(), count)


@dataclass(frozen=True, slots=True)
class ExpertLine:
    """The slots, and the store that knows what lies in them. Where there are several sections, it has its number.

    `host_slots` is the memory of those in host memory.
    """

    room: ExpertRoom
    store: ExpertStore
    budgets: tuple[Budget, ...]
    host_slots: Sequence["HostMemory"]
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
        device, settings, sizes = room.device, room.settings, room.slot_bytes
        first, *others = (place.name for place in device.places)
        on_host = [device.host_memory(sizes[first]) for _ in range(slots[first])]
        behind = {place: [device.device_memory(sizes[place]) for _ in range(slots[place])] for place in others}
        cells: Mapping[str, Sequence[Buffer]] = {first: on_host, **behind}
        budgets = [Budget(numbered(PLACE.format(place), section), {KIND: each}, clock) for place, each in cells.items()]
        chosen = settings.expert_cache
        policy = EVICTION[chosen] if isinstance(chosen, str) else chosen
        store = ExpertStore(budgets, experts=room.count, part=expert, window=room.window, policy=policy)
        return cls(room, store, tuple(budgets), on_host, source, clock, section)

    def line(self, trace: Trace) -> Line:
        """The actors in a row. As many messages have a slot: none that is there waits behind one that is read.

        What each layer wants and finds is counted in the trace, see `ExpertCounters`, and what the CPU computes of it
        as the work of an actor.
        """
        self.store.told = ExpertCounters(trace, self.clock)
        host, *behind = self.budgets
        queue, planner = sum(host.slots.values()), ExpertPlanner(self.store)
        line = (
            Line(planner, catalog=self.room.catalog, clock=self.clock, trace=trace, number=self.section)
            .then(ExpertReader(self.source, host, self.store), queue=queue)
            .then(ExpertUploader(self.room.device, behind[-1] if behind else None, self.store), queue=queue)
            .then(ExpertKeeper(self.store), queue=queue)
        )
        if self.room.leaves_some_to_the_cpu:
            self.store.computed_on_host = functools.partial(_count, line.count_beside(EXPERT_CPU))
        return line


def _count(meter: Meter, messages: Sequence[Message[Slot]], event: Event) -> None:
    meter.launched(messages[0], (event,), messages[0].at.index, len(messages))
