"""What a section asks of the program of which it computes a part: the `whole`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import Message
from pipeline.generation.generation_pass import GenerationPass

Asking = TypeVar("Asking", contravariant=True)
"""The kind of section that asks."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What comes with a pass from another section: the hidden states of each of its parts, [T, D], and when they are
    there.
    """

    hidden: Sequence[torch.Tensor]
    events: Sequence[Event]


class Passes(Protocol[Asking]):
    """What a section asks of the whole: which pass it is in, and what becomes of it."""

    async def begin(self, section: Asking, /) -> GenerationPass:
        """Wait until there is work, and return the state of one pass over it."""

    def ahead(self, section: Asking, pass_: GenerationPass, /) -> GenerationPass | None:
        """As `Program.ahead`: begin the next pass before the results of this one are known, or None."""

    async def arrive(self, section: Asking, pass_: GenerationPass, message: Message[Slot], /) -> Arrived:
        """Wait until the pass stands before a group, one of the section's hops; returns what comes with it."""

    def left(
        self, section: Asking, pass_: GenerationPass, messages: Sequence[Message[Slot]], ran: Sequence[Event], /
    ) -> None:
        """Take note that groups were launched; without events where they are not needed any more."""

    async def finish(self, section: Asking, pass_: GenerationPass, /) -> None:
        """Wait for the results of the pass and hand them on."""
