"""A stretch: groups that stay, one behind the other in compute order, whose computations can be launched as one."""

from collections.abc import Iterator, Sequence

from actors.core.budget import Slot
from actors.core.message import READY, Message

MOST_GROUPS = 16
"""A pass that is not needed any more is left behind the stretch in hand, and a failure names the first of these."""


def stretches(messages: Sequence[Message[Slot]]) -> Iterator[Sequence[Message[Slot]]]:
    """Cut groups that follow one another, the same in every pass; one that moves is the first, and alone."""
    begin = 0 if messages[0].at.stays else 1
    if begin:
        yield messages[:1]
    for first in range(begin, len(messages), MOST_GROUPS):
        yield messages[first : first + MOST_GROUPS]


def has_arrived(message: Message[Slot]) -> bool:
    """Whether the group's bytes are where they belong."""
    return message.event is READY or (message.event.done() and message.event.error is None)
