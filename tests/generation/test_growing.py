"""Sequences that grow beyond the original context, where their rotary frequencies change."""

from array import array

from pipeline.generation.batching import Batcher
from pipeline.generation.sampling import Choice, SamplingParameters
from pipeline.generation.sequence import RunningSequence
from pipeline.state.blocks import BlockPool


def test_who_grows_into_other_frequencies_is_computed_anew_in_other_blocks() -> None:
    """Beyond 18 tokens; the block that another call shares keeps what it holds, and who has paused keeps its own."""
    grows, stays = (
        RunningSequence(
            array("i", range(1, tokens + 1)),
            SamplingParameters(max_new_tokens=4),
            frozenset(),
            None,
            1000,
            scope=b"a",
            choose_rope_length=lambda tokens: tokens if tokens > 18 else 0,
        )
        for tokens in (17, 17)
    )
    shared = Batcher(BlockPool(100), max_requests=4)
    shared.submit(grows)
    shared.computed(pieces := shared.next_pass(512))
    assert [piece.rope_length for piece in pieces] == [0]
    grows.accept(Choice(7, None))
    shared.submit(stays)
    first, second = shared.next_pass(512)
    assert (first.start, second.start, first.rope_length) == (17, 16, 0)
    assert grows.blocks[0] == stays.blocks[0]
    shared.computed([first, second])
    grows.accept(Choice(7, None))
    grows.most_unread = 1
    assert shared.next_pass(512) == []
    assert grows.cached_tokens == 18
    grows.most_unread, stays.most_unread = None, 0
    (piece,) = shared.next_pass(512)
    assert (piece.start, len(piece.token_ids), piece.logit_rows, piece.rope_length) == (0, 19, 1, 19)
    assert not set(grows.blocks) & set(stays.blocks)
    assert grows.scope is None
    assert stays.scope == b"a"
    shared.computed([piece])
    grows.accept(Choice(7, None))
    shared.restart()
    (piece,) = shared.next_pass(512)
    assert (piece.start, len(piece.token_ids), piece.rope_length) == (0, 20, 20)
