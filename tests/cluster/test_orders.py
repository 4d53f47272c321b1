"""What sections are told of a pass is all that they need, survives pickling, and can be told anew."""

import pickle
from array import array
from typing import Any, cast

import pytest

from pipeline.cluster.cluster_admission import ClusterAdmission
from pipeline.cluster.order_book import OrderBook
from pipeline.cluster.told_sequences import ToldSequence, ToldSequences
from pipeline.errors import RequestError
from pipeline.generation.batching import Batcher, Piece
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.pass_size import PassRate, PassSize
from pipeline.generation.sampling import Choice, Sampler
from pipeline.generation.sequence import RunningSequence
from pipeline.state.blocks import BlockPool
from pipeline.state.state_slots import StateSlots

VOCABULARY = 300


def request(length: int, index: int = 0, **arguments: Any) -> RunningSequence:
    parameters = SamplingParameters(max_new_tokens=6, **arguments)
    earlier = [RunningSequence(array("i", [1]), parameters, frozenset(), None, VOCABULARY) for _ in range(index)]
    for one in earlier:
        one.cancel()
    prompt = array("i", range(1, length + 1))
    return RunningSequence(prompt, parameters, frozenset(), None, VOCABULARY, earlier=earlier)


def tell(book: OrderBook, told: ToldSequences, pieces: list[Piece]) -> list[Piece]:
    """The pieces as a section on another node gets them."""
    return told.pieces(pickle.loads(pickle.dumps(book.order(pieces, {}))))


def draws(sampler: Sampler, count: int) -> list[float]:
    numbers = []
    for _ in range(count):
        numbers.append(sampler.uniform)
        sampler.took(7)
    return numbers


def run(batcher: Batcher, book: OrderBook, told: ToldSequences, passes: int) -> list[list[float]]:
    """So many passes, each token the number of its pass; the random numbers that the section would draw with."""
    drawn = []
    for number in range(passes):
        pieces = batcher.next_pass(40)
        there = tell(book, told, pieces)
        for here, piece in zip(pieces, there, strict=True):
            assert (piece.start, piece.token_ids, piece.logit_rows) == (here.start, here.token_ids, here.logit_rows)
            assert (piece.state_read, piece.state_write) == (here.state_read, here.state_write)
            assert piece.snapshots == here.snapshots
            assert piece.sequence.blocks == here.sequence.blocks
            assert piece.sequence.sampler.settings == here.sequence.sampler.settings
            assert list(piece.sequence.sampler.token_ids) == here.sequence.token_ids
        drawn.append([piece.sequence.sampler.uniform for piece in there if piece.logit_rows])
        batcher.computed(pieces)
        for piece in pieces:
            if piece.logit_rows:
                piece.sequence.accept(Choice(number, None))
    return drawn


def test_sections_know_what_the_coordinator_knows() -> None:
    """With recurrent states, prompts that take several passes, and sequences that come while others run."""
    batcher = Batcher(BlockPool(64), 8, states=StateSlots(8, 4))
    book, told = OrderBook(), ToldSequences(VOCABULARY)
    first = [request(70, temperature=1.0, seed=5), request(3, index=2, temperature=1.0, seed=5)]
    for one in first:
        batcher.submit(one)
    run(batcher, book, told, 3)
    batcher.submit(request(20, temperature=1.0, seed=9))
    run(batcher, book, told, 8)
    assert all(one.state == "finished" for one in first)
    assert not batcher.next_pass(40)


@pytest.mark.parametrize("seed", [None, 11, -1, 2**63])
def test_a_sequence_that_is_told_anew_draws_the_same(seed: int | None) -> None:
    """Also one whose call has no seed: the coordinator gives it one."""
    numbers = []
    for restart in (False, True):
        batcher, book, told = Batcher(BlockPool(64), 8), OrderBook(), ToldSequences(VOCABULARY)
        sequence = request(5, index=1, temperature=1.0, seed=seed)
        batcher.submit(sequence)
        drawn = run(batcher, book, told, 2)
        if restart:
            batcher.restart()
            told.forget()
            book.forget()
            told = ToldSequences(VOCABULARY)
        parameters = book._told[sequence].parameters
        drawn += run(batcher, book, told, 2)
        one_place = Sampler(parameters, sequence.prompt_ids, VOCABULARY, 1)
        assert [one for some in drawn for one in some] == draws(one_place, len(drawn))
        numbers.append(drawn)
    assert (numbers[0] == numbers[1]) == (seed in (11, 2**63))


def test_blocks_that_were_given_anew_are_told_anew() -> None:
    batcher, book, told = Batcher(BlockPool(64), 8), OrderBook(), ToldSequences(VOCABULARY)
    one, other = request(40), request(40)
    batcher.submit(one)
    batcher.submit(other)
    run(batcher, book, told, 3)
    batcher.restart()
    pieces = batcher.next_pass(200)
    there = tell(book, told, pieces)
    assert [piece.sequence.blocks for piece in there] == [piece.sequence.blocks for piece in pieces]
    assert len(told._sequences) == 2


def test_those_that_have_ended_are_dropped() -> None:
    batcher, book, told = Batcher(BlockPool(64), 8), OrderBook(), ToldSequences(VOCABULARY)
    for length in (3, 4, 5):
        batcher.submit(request(length))
    there = tell(book, told, pieces := batcher.next_pass(40))
    numbers = [book.number(piece.sequence) for piece in pieces]
    assert None not in numbers
    pieces[0].sequence.cancel()
    told.withdraw([cast("int", numbers[0]), 99])
    assert [piece.sequence.ended for piece in there] == [True, False, False]
    batcher.computed(pieces)
    for piece in pieces[1:]:
        piece.sequence.accept(Choice(1, None))
    later = tell(book, told, batcher.next_pass(40))
    assert len(later) == len(told._sequences) == 2
    assert there[0].sequence.sampler.ended


def test_one_that_failed_in_a_section_goes_on_where_the_next_order_names_it() -> None:
    """A pass that was skipped has failed nobody, but for those whose error the coordinator was told."""
    batcher, book, told = Batcher(BlockPool(64), 8), OrderBook(), ToldSequences(VOCABULARY)
    batcher.submit(request(3))
    pieces = batcher.next_pass(40)
    (piece,) = tell(book, told, pieces)
    sequence = cast("ToldSequence", piece.sequence)
    sequence.fail(RequestError("a row"))
    assert sequence.ended
    assert str(sequence.error) == "a row"
    (again,) = tell(book, told, pieces)
    assert again.sequence is cast("Any", sequence)
    assert not sequence.ended


def test_functions_do_not_travel() -> None:
    admission = ClusterAdmission(Batcher(BlockPool(1), 1), PassRate(PassSize(1, None)))
    admission.check(SamplingParameters())
    with pytest.raises(RequestError, match="logits_processor: a function runs in this process alone"):
        admission.check(SamplingParameters(logits_processor=lambda ids, logits: logits))
