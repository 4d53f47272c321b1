"""A stretch: groups that stay, one behind the other in compute order, whose computations can be launched as one."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from actors.core.budget import Slot
from actors.core.message import READY, Message

MOST_GROUPS = 16
"""A pass that is not needed any more is left behind the stretch in hand, and a failure names the first of these."""


def stretches(messages: Iterable[Message[Slot]]) -> Iterator[Sequence[Message[Slot]]]:
    """Cut groups that follow one another, the same in every pass; one that moves is the first, and alone."""
    messages = iter(messages)
    stretch = [*itertools.islice(messages, 1)]
    if not stretch[0].at.stays:
        yield stretch
        stretch = []
    while stretch := [*stretch, *itertools.islice(messages, MOST_GROUPS - len(stretch))]:
        yield stretch
        stretch = []


def has_arrived(message: Message[Slot]) -> bool:
    """Whether the group's bytes are where they belong."""
    return message.event is READY or (message.event.done() and message.event.error is None)
