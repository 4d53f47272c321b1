"""What a section launches: work on the rows of a micro-batch, on the lane of a group."""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeAlias

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import Message
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.micro_batches import MicroBatch

HalfWork: TypeAlias = Callable[[MicroBatch], None]
"""What computes half a layer, or a part of it, for the rows of a micro-batch."""


class Launch(Protocol):
    """Launches work on the lane of the message's group, behind what came before in the micro-batch."""

    def __call__(
        self,
        message: Message[Slot],
        pass_: GenerationPass,
        part: MicroBatch,
        work: Callable[[], object],
        after: Sequence[Event] = (),
        repeats: Hashable = None,
        *,
        short: bool = False,
    ) -> Event:
        """Launch `work`, behind the events in `after`, too, and return the event of its end.

        `repeats` is what its kernels depend on beside the group's slot and the rows of the pass, None for anything, and
        `short` is as in `Device.launch`.
        """
