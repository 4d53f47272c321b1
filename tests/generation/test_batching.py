"""Who shares a pass: every request that has room, each with its next tokens, none for ever behind another."""

from array import array
from collections.abc import Sequence

import pytest

from pipeline.errors import ActorFailed
from pipeline.generation.batching import Batcher, Piece
from pipeline.generation.sampling import Choice, SamplingParameters
from pipeline.generation.sequence import RunningSequence
from pipeline.generation.shortages import QUIET_SECONDS, Shortages
from pipeline.state.blocks import BLOCK_TOKENS, BlockPool

ERROR = ActorFailed("disk_reader", 3, "ffn", OSError("disk"))


def request(
    prompt_tokens: int, max_new_tokens: int = 4, priority: int = 0, earlier: Sequence[RunningSequence] = ()
) -> RunningSequence:
    parameters = SamplingParameters(max_new_tokens=max_new_tokens)
    prompt = range(1, prompt_tokens + 1)
    return RunningSequence(array("i", prompt), parameters, frozenset(), None, 1000, priority=priority, earlier=earlier)


def batcher(*requests: RunningSequence, blocks: int = 1000, max_requests: int = 64) -> Batcher:
    made = Batcher(BlockPool(blocks), max_requests)
    for one in requests:
        made.submit(one)
    return made


def compute(pieces: list[Piece]) -> dict[RunningSequence, int]:
    """What a pass does to its sequences; returns the tokens that each brought."""
    for piece in pieces:
        assert piece.start == piece.sequence.cached_tokens
        piece.sequence.cached_tokens += len(piece.token_ids)
        assert piece.logit_rows == (piece.sequence.waiting_count == 0)
        if piece.logit_rows:
            piece.sequence.accept(Choice(7, None))
    return {piece.sequence: len(piece.token_ids) for piece in pieces}


def test_all_that_waits_shares_a_pass() -> None:
    first, second = request(5), request(3)
    shared = batcher(first, second)
    assert compute(shared.next_pass(512)) == {first: 5, second: 3}
    assert compute(shared.next_pass(512)) == {first: 1, second: 1}
    late = request(2)
    shared.submit(late)
    assert compute(shared.next_pass(512)) == {first: 1, second: 1, late: 2}


def test_a_long_prompt_delays_nobodys_next_token() -> None:
    answering, long = request(2, max_new_tokens=50), request(100)
    shared = batcher(answering)
    compute(shared.next_pass(10))
    shared.submit(long)
    for _ in range(11):
        assert compute(shared.next_pass(10)) == {answering: 1, long: 9}
    assert compute(shared.next_pass(10)) == {answering: 1, long: 1}
    assert len(long.token_ids) == 1


def test_beside_one_that_answers_prompts_get_no_more_than_is_allowed() -> None:
    answering, long = request(2, max_new_tokens=3), request(100)
    shared = batcher(answering)

    def most_of_prompts(beside: bool) -> int:
        return 7 if beside else 40

    assert compute(shared.next_pass(50, most_of_prompts)) == {answering: 2}
    shared.submit(long)
    for _ in range(2):
        assert compute(shared.next_pass(50, most_of_prompts)) == {answering: 1, long: 7}
    assert answering.ended
    assert compute(shared.next_pass(50, most_of_prompts)) == {long: 40}, "nobody waits for a next token"


def test_prompts_share_what_is_left_and_what_one_leaves_goes_to_the_others() -> None:
    long, short, longer = request(100), request(3), request(200)
    shared = batcher(long, short, longer)
    assert compute(shared.next_pass(31)) == {short: 3, long: 14, longer: 14}


def test_the_oldest_prompts_go_first_where_there_is_not_a_token_for_each() -> None:
    oldest = request(50)
    shared = batcher(oldest, *(request(2) for _ in range(9)))
    for _ in range(3):
        served = compute(shared.next_pass(4))
        assert served[oldest] >= 1
        assert sum(served.values()) == 4


def test_more_answers_than_tokens_take_turns() -> None:
    requests = [request(1, max_new_tokens=30) for _ in range(5)]
    shared = batcher(*requests)
    for _ in range(20):
        assert sum(compute(shared.next_pass(2)).values()) == 2
    assert {len(one.token_ids) for one in requests} == {8}


def test_requests_are_admitted_in_order_when_their_worst_case_fits() -> None:
    big, bigger, small = request(1, 2 * BLOCK_TOKENS), request(1, 3 * BLOCK_TOKENS), request(1, 2)
    shared = batcher(big, bigger, small, blocks=6)
    assert list(compute(shared.next_pass(9))) == [big], "3 blocks; the next needs 4, and none overtakes it"
    assert (shared.running, shared.waiting) == (1, 2)
    big.cancel()
    assert list(compute(shared.next_pass(9))) == [bigger, small]
    assert shared.ended == {"cancelled": 1}


def test_no_more_run_than_may() -> None:
    shared = batcher(*(request(1) for _ in range(5)), max_requests=2)
    compute(shared.next_pass(9))
    assert (shared.running, shared.waiting) == (2, 3)


def test_blocks_come_back_when_a_request_ends_and_only_then() -> None:
    pool = BlockPool(8)
    shared, finished, failed = Batcher(pool, 64), request(1, 1), request(1, 9)
    shared.submit(finished)
    shared.submit(failed)
    pieces = shared.next_pass(9)
    assert pool.used == 2
    compute(pieces)
    assert pool.used == 2, "the pass may still run"
    shared.retire()
    assert pool.used == 1
    shared.fail(RuntimeError("disk"))
    assert pool.used == 1, "the line may still run"
    shared.restart()
    assert (pool.used, shared.running, shared.wanted) == (0, 0, False)
    assert shared.ended == {"finished": 1, "failed": 1}


def test_one_that_is_cancelled_while_it_waits_never_runs() -> None:
    gone, other = request(1), request(1)
    shared = batcher(gone, other, max_requests=1)
    gone.cancel()
    assert list(compute(shared.next_pass(9))) == [other]


def test_the_lowest_priority_is_served_first_and_the_oldest_of_equals() -> None:
    late, second, urgent, first = (request(1, 1, priority) for priority in (5, 0, -3, 0))
    running, order = request(1, 1, priority=9), []
    shared = batcher(running, max_requests=1)
    pieces = shared.next_pass(9)
    for one in (late, second, urgent, first):
        shared.submit(one)
    while pieces:
        order += compute(pieces)
        pieces = shared.next_pass(9) if shared.wanted else []
    assert order == [running, urgent, second, first, late], "and what runs is not interrupted"


def test_a_small_request_of_less_priority_does_not_overtake_one_that_does_not_fit() -> None:
    running, big, small = request(1, 40), request(1, 90, priority=-1), request(1, 1)
    shared = batcher(running, blocks=6)
    compute(shared.next_pass(9))
    shared.submit(small)
    shared.submit(big)
    assert list(compute(shared.next_pass(9))) == [running]
    running.cancel()
    assert list(compute(shared.next_pass(9))) == [big]


def test_those_that_ran_go_first_after_a_restart_with_the_tokens_that_they_have() -> None:
    first, second, waiting = request(20, 9), request(3, 9, priority=5), request(1, 1, priority=-1)
    shared = batcher(first, second, max_requests=2)
    for _ in range(3):
        compute(shared.next_pass(64))
    shared.submit(waiting)
    tokens = list(first.token_ids)
    shared.restart()
    assert (shared.pool.used, shared.running, shared.waiting) == (0, 0, 3)
    assert compute(shared.next_pass(64)) == {first: 20 + 3, second: 3 + 3}
    assert (first.token_ids[:-1], len(first.token_ids)) == (tokens, 4)
    assert compute(shared.next_pass(64)) == {first: 1, second: 1}


def test_only_those_whose_turn_has_come_are_told_each_with_an_error_of_its_own() -> None:
    running, other, waiting = request(1, 9), request(1, 9), request(1, 9)
    shared = batcher(running, other, waiting, max_requests=2)
    shared.fail(ERROR, those_that_run=True)  # nobody runs yet
    compute(shared.next_pass(9))
    shared.fail(ERROR, those_that_run=True)
    assert [one.state for one in (running, other, waiting)] == ["failed", "failed", "waiting"]
    errors = [one._unread.get_nowait() for one in (running, other) if one._unread.get_nowait()]
    assert [str(error) for error in errors] == [str(ERROR)] * 2
    assert errors[0] is not errors[1]
    assert errors[0].__cause__ is errors[1].__cause__ is ERROR.__cause__  # type: ignore[union-attr]
    shared.restart()
    assert list(compute(shared.next_pass(9))) == [waiting]


def samples(count: int, prompt_tokens: int) -> list[RunningSequence]:
    made: list[RunningSequence] = []
    for _ in range(count):
        made.append(request(prompt_tokens, earlier=made))
    return made


def test_samples_wait_for_the_first_to_compute_the_prompt_and_others_go_before_them() -> None:
    first, second, third = samples(3, prompt_tokens=20)
    other = request(3)
    shared = batcher(first, second, third, other)
    assert compute(shared.next_pass(13)) == {other: 3, first: 10}
    assert set(compute(shared.next_pass(13))) == {other, first}
    assert set(compute(shared.next_pass(13))) == {other, first, second, third}


@pytest.mark.parametrize("at", ["waiting", "running"])
def test_when_the_first_sample_ends_early_the_next_takes_its_place(at: str) -> None:
    first, second, third = samples(3, prompt_tokens=20)
    shared = batcher(first, second, third)
    if at == "running":
        compute(shared.next_pass(10))
    first.cancel()
    assert list(compute(shared.next_pass(20))) == [second]
    assert list(compute(shared.next_pass(40))) == [second, third]


def test_samples_run_on_when_the_first_has_finished() -> None:
    first, second, third = samples(3, prompt_tokens=1)
    shared = batcher(first, second, third)
    compute(shared.next_pass(9))
    first.fail(RuntimeError("sampler"))
    assert list(compute(shared.next_pass(9))) == [second, third]


@pytest.mark.parametrize(
    ("room", "most_tokens", "setting", "says"),
    [
        (
            {"blocks": 5},
            512,
            "kv_tokens",
            "4 requests wait for KV room: need 32 tokens for the next of them, have 16 of 80 free while 2 run; "
            "open the model with kv_tokens=192 to let them share passes, or call with lower max_new_tokens",
        ),
        (
            {"max_requests": 4},
            512,
            "max_requests",
            "2 requests wait until one of the 4 that run has ended: no more share a pass with max_requests=4; "
            "open the model with a larger max_requests to let them",
        ),
        (
            {},
            5,
            "max_tokens_per_pass",
            "6 requests take turns: no more share a pass with max_tokens_per_pass=5; "
            "open the model with a larger max_tokens_per_pass to let them",
        ),
    ],
)
def test_what_keeps_requests_from_sharing_is_told_once_while_it_lasts(
    room: dict[str, int], most_tokens: int, setting: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    shared, now = batcher(**room), [0.0]
    shared.shortages = Shortages(lambda: now[0])
    for seconds, pass_seconds, told in ((0, 0, 1), (QUIET_SECONDS / 2, 0, 1), (QUIET_SECONDS, 2 * QUIET_SECONDS, 2)):
        now[0] += seconds
        for _ in range(6):
            shared.submit(request(1, max_new_tokens=30))
        while shared.unfinished:
            compute(shared.next_pass(most_tokens))
            now[0] += pass_seconds
        assert [record.getMessage() for record in caplog.records] == [says] * told
        shared.next_pass(most_tokens)
    apart = {"kv_tokens": 60, "max_requests": 30, "max_tokens_per_pass": 35}
    assert shared.shortages.passes == {name: 3 * apart[name] if name == setting else 0 for name in apart}


def test_one_that_waits_and_one_that_runs_are_told_of_as_such(caplog: pytest.LogCaptureFixture) -> None:
    for room in ({"max_requests": 1}, {"blocks": 2}):
        batcher(request(1, max_new_tokens=30), request(1, max_new_tokens=30), **room).next_pass(9)
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        "1 request waits until the one that runs has ended",
        "1 request waits for KV room",
    ]
    assert "have 0 of 32 free while 1 runs; open" in caplog.text


def test_enough_room_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    shared = batcher(*(request(1, max_new_tokens=31) for _ in range(6)), blocks=12, max_requests=6)
    while shared.unfinished:
        compute(shared.next_pass(6))
    assert not caplog.records
    assert not any(shared.shortages.passes.values())
