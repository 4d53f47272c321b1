"""What a coordinator asks of the sections of a model, wherever they are."""

from collections.abc import Sequence
from typing import Protocol

from pipeline.cluster.orders import PassOrder, SectionReport
from pipeline.cluster.section_calls import NodeTrace, NotBegun, Offer, Opened, Survey
from pipeline.errors import ActorFailed, CheckpointError, ConfigError, PenstockError, RequestError, ResourceError


class SectionDied(ActorFailed):
    """The process of a section has ended, or its node cannot be reached. It is started again."""


def under_name(name: str, error: BaseException) -> PenstockError:
    """The error of a section, with its name."""
    if isinstance(error, ConfigError | CheckpointError | ResourceError | RequestError | NotBegun):
        return type(error)(f"{name}: {error}")
    return ActorFailed(name, None, None, error)


class Sections(Protocol):
    """All sections, each with a number."""

    async def survey(self) -> Sequence[Survey]:
        """What each finds on its node. Raises PenstockError where the model cannot be opened there."""

    async def offer(self, owners: Sequence[int], *, fitting: bool) -> Sequence[Offer]:
        """What each could do with its layers, as these are dealt. Raises ConfigError where it must fit and does not."""

    def agree(self, owners: Sequence[int], kv_tokens: int, pass_tokens: int) -> None:
        """Say which section computes each layer, and for how many tokens all have room; before they begin."""

    async def begin(self) -> Sequence[Opened]:
        """Let all begin anew, those too that were started again; they know no sequence. Raises PenstockError."""

    async def compute(self, order: PassOrder) -> Sequence[SectionReport]:
        """Let a pass go through all of them. Raises the first failure, of those that died the one that did."""

    def withdraw(self, numbers: Sequence[int]) -> None:
        """Let them compute no more of these sequences, whose callers have gone; nobody waits until they know."""

    async def clock(self, number: int) -> float:
        """What the clock of a section says, in seconds. Raises SectionDied, as the next two do."""

    async def record(self, number: int) -> None:
        """Let a section record what it does, and forget what it has recorded."""

    async def recorded(self, number: int) -> NodeTrace:
        """Let it record no more, and give what it has. Raises NotBegun where its process was started anew since."""

    async def watch(self) -> None:
        """Return never. Raises SectionDied when one of them has died."""

    def name(self, number: int) -> str:
        """A section for people: its number, its node and, as far as they are known, its layers."""

    async def aclose(self) -> None:
        """Let them give everything back, and end them."""
