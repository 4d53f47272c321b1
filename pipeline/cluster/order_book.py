"""The coordinator's list of what sections know: it makes orders of pieces, and sends of each sequence what is new."""

import asyncio
import secrets
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.cluster.orders import PassOrder, PieceOrder, SequenceOrder
from pipeline.errors import RequestError
from pipeline.generation.batching import Piece
from pipeline.generation.parameters import ANY_SEED, SamplingParameters
from pipeline.generation.sequence import RunningSequence

SEED_BITS = 64


@dataclass(slots=True)
class Told:
    """What sections know of a sequence: its number, the list of its blocks, and its parameters with a seed."""

    number: int
    blocks: list[int]
    parameters: SamplingParameters


class OrderBook:
    """Numbers passes and sequences. A sequence that has got other blocks gets a new number, and is told anew."""

    def __init__(self) -> None:
        self._told: dict[RunningSequence, Told] = {}
        self._gone: list[int] = []
        self._passes = self._sequences = 0

    def order(self, pieces: Sequence[Piece], allowed: Mapping[RunningSequence, bytes]) -> PassOrder:
        """The next pass, of these pieces; `allowed` are the bits of the tokens that grammars leave."""
        for sequence in [one for one in self._told if one.ended]:
            self._gone.append(self._told.pop(sequence).number)
        new = [self._introduce(piece.sequence) for piece in pieces if self._is_new(piece.sequence)]
        gone, self._gone = tuple(self._gone), []
        self._passes += 1
        return PassOrder(self._passes, tuple(self._piece(one, allowed) for one in pieces), tuple(new), gone)

    def number(self, sequence: RunningSequence) -> int | None:
        """The number by which sections know a sequence; None where they do not."""
        told = self._told.get(sequence)
        return None if told is None else told.number

    def forget(self) -> None:
        """Tell all sequences anew: sections have forgotten them. Draws of those that go on repeat all the same."""
        self._gone.clear()
        for told in self._told.values():
            told.blocks = []

    def _is_new(self, sequence: RunningSequence) -> bool:
        told = self._told.get(sequence)
        return told is None or told.blocks is not sequence.blocks

    def _introduce(self, sequence: RunningSequence) -> SequenceOrder:
        sampler, before = sequence.sampler, self._told.get(sequence)
        if before is None:
            parameters = with_seed(sampler.parameters)
        else:
            self._gone.append(before.number)
            parameters = before.parameters
        self._sequences += 1
        self._told[sequence] = Told(self._sequences, sequence.blocks, parameters)
        ids = sequence.prompt_ids, array("i", sequence.token_ids)
        return SequenceOrder(self._sequences, *ids, parameters, sampler.index, array("i", sequence.blocks))

    def _piece(self, piece: Piece, allowed: Mapping[RunningSequence, bytes]) -> PieceOrder:
        return PieceOrder(
            self._told[piece.sequence].number,
            piece.start,
            array("i", piece.token_ids),
            piece.logit_rows,
            piece.rope_length,
            piece.state_read,
            piece.state_write,
            piece.snapshots,
            allowed.get(piece.sequence),
        )


def with_seed(parameters: SamplingParameters) -> SamplingParameters:
    """The same with a seed, where they have none: a section that is told of the sequence once more draws the same."""
    if parameters.seed not in (None, ANY_SEED):
        return parameters
    return replace(parameters, seed=secrets.randbits(SEED_BITS))


async def allowed_next(pieces: Sequence[Piece]) -> dict[RunningSequence, bytes]:
    """The bits of the tokens that the grammars of these pieces allow next, found on a thread.

    A sequence whose grammar cannot be followed ends.
    """
    asked = [piece.sequence for piece in pieces if piece.logit_rows and piece.sequence.sampler.grammar is not None]
    return await asyncio.to_thread(_bits, asked) if asked else {}


def _bits(sequences: Sequence[RunningSequence]) -> dict[RunningSequence, bytes]:
    bits: dict[RunningSequence, bytes] = {}
    for sequence in sequences:
        if (grammar := sequence.sampler.grammar) is not None:
            try:
                bits[sequence] = grammar.allowed().tobytes()
            except RequestError as error:
                sequence.fail(error)
    return bits
