"""Where a pass stands that several lines compute in turn, each the groups of its own section."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence

from actors.core.message import GroupKey


class Relay:
    """A pass stands before one group at a time. The line that owns this group launches it, and hands the pass on.

    There is one pass at a time. A hop is where the group before belongs to another section; the first group of a pass
    is behind one, too, which `begin` takes.
    """

    def __init__(self, order: Sequence[GroupKey], owners: Mapping[GroupKey, int]) -> None:
        """`order` has all groups of a pass in compute order, and `owners` says to which section each belongs."""
        self._first = order[0]
        self._next = dict(itertools.pairwise(order))
        behind_hops = (key for before, key in self._next.items() if owners[before] != owners[key])
        self._stands_before = {key: asyncio.Event() for key in (self._first, *behind_hops)}

    def begin(self) -> None:
        """Let a pass stand before the first group."""
        self._stands_before[self._first].set()

    async def reached(self, key: GroupKey) -> None:
        """Wait until the pass stands before the group; at once where the section itself has launched the one before."""
        if key in self._stands_before:
            await self._stands_before[key].wait()

    def left(self, key: GroupKey) -> None:
        """Say that the group was launched: the pass stands before the next one, and behind the last before none."""
        if key in self._stands_before:
            self._stands_before[key].clear()
        if (following := self._next.get(key)) in self._stands_before:
            self._stands_before[following].set()

    def fail(self) -> None:
        """Forget the pass that was under way; the lines have stopped."""
        for stands_before in self._stands_before.values():
            stands_before.clear()
