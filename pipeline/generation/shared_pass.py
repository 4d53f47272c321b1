"""The pass that sections compute in turn: where it stands, what was launched of it, and who is through."""

import asyncio
import itertools
from collections.abc import Sequence

from actors.core.event import Event
from actors.core.message import GroupKey
from pipeline.engine.relay import Relay
from pipeline.engine.runtime import CLOCK
from pipeline.engine.section_waits import SectionWaits
from pipeline.generation.generation_pass import GenerationPass


class SharedPass:
    """Each section has a state of its own in the pass. The next one begins when all are through with this one."""

    def __init__(self, orders: Sequence[Sequence[GroupKey]]) -> None:
        """`orders` are those of the sections; a layer is computed by one of them."""
        self._owners = {key: section for section, order in enumerate(orders) for key in order}
        self._order = sorted(self._owners, key=lambda key: key[0])
        self._before = {key: before for before, key in itertools.pairwise(self._order)}
        self._relay = Relay(self._order, self._owners)
        self.waits = SectionWaits(len(orders))
        self._states: Sequence[GenerationPass] = ()
        self._launched: dict[GroupKey, Sequence[Event]] = {}
        self._begun = [asyncio.Event() for _ in orders]
        self._through = [asyncio.Event() for _ in orders]
        self.fail()

    @property
    def hops(self) -> list[frozenset[GroupKey]]:
        """Of each section the groups whose group before belongs to another one."""
        behind = [key for key, before in self._before.items() if self._owners[key] != self._owners[before]]
        return [frozenset(key for key in behind if self._owners[key] == one) for one in range(len(self._begun))]

    def begin(self, states: Sequence[GenerationPass]) -> None:
        """Let a pass stand before the first group, with a state for each section."""
        self._states = states
        self._launched = {}
        for begun, through in zip(self._begun, self._through, strict=True):
            through.clear()
            begun.set()
        self.waits.begin(CLOCK())
        self._relay.begin()

    async def begun(self, section: int) -> GenerationPass:
        """Wait for the next pass; returns the section's state in it."""
        await self._begun[section].wait()
        self._begun[section].clear()
        return self._states[section]

    async def arrive(self, key: GroupKey) -> tuple[int, GenerationPass]:
        """Wait until the pass stands before a group; returns the section from which it comes, and its state there."""
        await self._relay.reached(key)
        before = self._owners[self._before[key]]
        return before, self._states[before]

    def left(self, key: GroupKey, ran: Sequence[Event]) -> None:
        """Say that a group was launched."""
        self._launched[key] = ran
        self.waits.left(self._owners[key], ran)
        self._relay.left(key)

    def through(self, section: int) -> None:
        """Say that all that a section has launched of the pass has ended."""
        self._through[section].set()
        if all(through.is_set() for through in self._through):
            self.waits.ended()

    async def all_through(self) -> None:
        """Wait until this holds of all sections."""
        for through in self._through:
            await through.wait()

    async def others_through(self, section: int) -> None:
        """Wait until this holds of all but one section."""
        for other, through in enumerate(self._through):
            if other != section:
                await through.wait()

    def failed_in(self) -> int | None:
        """The section in which the first group has failed; all behind it fail for the same reason. None if none has."""
        ran = ((key, self._launched.get(key, ())) for key in self._order)
        failed = (self._owners[key] for key, events in ran if any(event.error is not None for event in events))
        return next(failed, None)

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""
        self._relay.fail()
        for begun, through in zip(self._begun, self._through, strict=True):
            begun.clear()
            through.set()
