"""A stretch: groups that stay, one behind the other in compute order, whose computations can be launched as one."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from actors.core.budget import Slot
from actors.core.message import READY, Message
from actors.core.ports import Program

MOST_GROUPS = 16
"""Not all of a pass: one that no request needs any more stops only behind the stretch in hand, and a failure names only
the first group of a stretch."""


def stretches(messages: Iterable[Message[Slot]], program: Program) -> Iterator[Sequence[Message[Slot]]]:
    """Cut groups that follow one another into stretches, the same ones in every pass.

    A first group that moves is alone. A group of the program's `hops` begins a new stretch, as the host waits for the
    pass before it. A group that is `apart` is alone, too.
    """
    messages, hops, apart = iter(messages), program.hops, program.apart
    stretch = [*itertools.islice(messages, 1)]
    if not stretch[0].at.stays:
        yield stretch
        stretch = []
    for message in messages:
        alone = message.key in apart or (stretch and stretch[-1].key in apart)
        if stretch and (len(stretch) == MOST_GROUPS or alone or message.key in hops):
            yield stretch
            stretch = []
        stretch.append(message)
    if stretch:
        yield stretch


def has_arrived(message: Message[Slot]) -> bool:
    """Whether the group's bytes are where they belong."""
    return message.event is READY or (message.event.done() and message.event.error is None)
