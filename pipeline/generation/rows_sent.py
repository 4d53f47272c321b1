"""The rows of a pass for which tokens are chosen, from what the host sends until it knows them."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from actors.core.event import Event
from actors.core.message import READY
from pipeline.errors import RequestError
from pipeline.generation.drawing import Filters
from pipeline.generation.sampling import Choice, Sampler

RESULTS = 4
"""The numbers that `choose` gives for a row."""
CHOSEN = 2
"""Which of them is the token."""
Outcome: TypeAlias = Choice | RequestError


class Run(NamedTuple):
    """Rows that are computed together, and how many log-probabilities each gets; None for not even the token's own."""

    begin: int
    end: int
    filters: Filters
    logprobs: int | None


@dataclass(slots=True)
class RowsSent:
    """The rows of a pass for which tokens are to be chosen: whose they are, their numbers, and what has come of them.

    Attributes:
        samplers, numbers: of the rows that the device chooses for, in the order of their `runs`.
        changes, biases: how many changed entries of tables, and biased logits, are sent with the numbers.
        processed: the rows that a function of the user's changes: the host chooses for these.
        outcomes: what was chosen, or why nothing was, as far as it is known.
        prepared, sent, chosen, known: the events of the steps: the numbers are written, then on the device; the device
            has chosen, then the host knows what.
    """

    samplers: list[Sampler] = field(default_factory=list)
    numbers: list[list[float]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    changes: int = 0
    biases: int = 0
    processed: list[tuple[Sampler, list[float]]] = field(default_factory=list)
    outcomes: dict[Sampler, Outcome] = field(default_factory=dict)
    prepared: Event = READY
    sent: Event = READY
    chosen: Event = READY
    known: Event = READY

    @property
    def repeats(self) -> Hashable:
        """What the kernels that choose depend on beside numbers on the device; None where the rows are not alike."""
        if len(self.runs) != 1 or self.runs[0].logprobs is not None or self.changes not in (0, len(self.samplers)):
            return None
        if self.biases:
            return None
        return "choose", self.runs[0], self.changes

    @property
    def goes_on(self) -> bool:
        """Whether the device can go on from what it has chosen: row by row, and the next choice depends on no table."""
        return self.repeats is not None and not self.processed and not self.runs[0].filters.penalised

    @property
    def result_counts(self) -> list[int]:
        """How many numbers come back: of all rows together, then of each run that asks for log-probabilities."""
        asking = [(run.end - run.begin) * (1 + 2 * run.logprobs) for run in self.runs if run.logprobs is not None]
        return [RESULTS * len(self.samplers), *asking]
