"""What the coordinator tells the sections of a pass, and what they report: plain data, which travels between nodes."""

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import PenstockError
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.prompt_scores import Found
from pipeline.generation.rows_sent import Outcome

if TYPE_CHECKING:
    from pipeline.cluster.cluster_statistics import NodeCounts


@dataclass(frozen=True, slots=True)
class SequenceOrder:
    """A sequence that the sections do not know yet, or that has got other KV blocks.

    `number` stands for it in later orders. It has `token_ids` of its answer so far. It is sample number `sample` of its
    call, and its `parameters` have a seed, so that all draws repeat.
    """

    number: int
    prompt_ids: "array[int]"
    token_ids: "array[int]"
    parameters: SamplingParameters
    sample: int
    blocks: "array[int]"


@dataclass(frozen=True, slots=True)
class PieceOrder:
    """A `Piece` of the sequence with this number. `allowed` are the bits of the tokens that its grammar allows next."""

    number: int
    start: int
    token_ids: "array[int]"
    logit_rows: int
    rope_length: int
    state_read: int
    state_write: int
    snapshots: tuple[tuple[int, int], ...]
    allowed: bytes | None = None


@dataclass(frozen=True, slots=True)
class PassOrder:
    """One pass, by its number: the pieces that share it, the sequences that are new, and those that are no more."""

    number: int
    pieces: tuple[PieceOrder, ...]
    new: tuple[SequenceOrder, ...] = ()
    gone: tuple[int, ...] = ()


@dataclass(slots=True)
class SectionReport:
    """What a section says of a pass that has gone through it.

    `failed` are sequences, by number, that have ended here, each with its error; `lost` the KV blocks and the slots of
    recurrent state whose contents the disk has lost. The section with the head has `outcomes` of pieces that ask for
    logits, and `scores` of prompts, with the position of the first; each of a sequence, by its number. A pass that was
    `skipped` has computed nothing. All that the section has `counted` comes with each report.
    """

    failed: dict[int, PenstockError] = field(default_factory=dict)
    lost_blocks: list[int] = field(default_factory=list)
    lost_states: list[int] = field(default_factory=list)
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    scores: list[tuple[int, int, Found]] = field(default_factory=list)
    skipped: bool = False
    counted: "NodeCounts | None" = None
