"""Shared blocks: each is held, cached or free, and what is found holds exactly what was looked for."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from support.cached_requests import A, B, Machine, compute, request, run

from pipeline.generation.batching import Batcher
from pipeline.state.blocks import BLOCK_TOKENS, BlockPool
from pipeline.state.prefix_cache import COMMON_SCOPE, named_scope, private_scope


def test_the_same_prompt_is_computed_once_but_for_its_last_token() -> None:
    shared = Batcher(BlockPool(100), 8)
    assert run(shared, request(range(64)), request(range(64)), request(range(65))) == [64, 16, 1]
    assert (shared.prefixes.queried_tokens, shared.prefixes.hit_tokens) == (193, 48 + 64)


def test_only_what_is_equal_from_the_first_token_on_is_shared() -> None:
    shared = Batcher(BlockPool(100), 8)
    prompt = list(range(64))
    run(shared, request(prompt))
    changed = {index: [*prompt[:index], 999, *prompt[index + 1 :]] for index in (0, 15, 16, 40, 63)}
    assert run(shared, *map(request, changed.values())) == [64, 64, 48, 32, 16]
    assert run(shared, request(prompt[16:])) == [48], "the same tokens at other positions"


def test_answers_are_shared_too() -> None:
    shared = Batcher(BlockPool(100), 8)
    first = request(range(20), new_tokens=40)
    run(shared, first)
    assert run(shared, request([*first.prompt_ids, *first.token_ids, 5])) == [60 + 1 - 48]


def test_scopes_do_not_share() -> None:
    shared = Batcher(BlockPool(100), 8)
    scopes = [A, B, COMMON_SCOPE, private_scope(), private_scope(), None, None]
    assert run(shared, *(request(range(50), scope) for scope in scopes)) == [50] * len(scopes)
    assert run(shared, request(range(50), B)) == [2]
    assert named_scope("common") != COMMON_SCOPE


def test_requests_that_run_at_a_time_hold_the_same_blocks() -> None:
    pool = BlockPool(100)
    shared, first, second = Batcher(pool, 8), request(range(70)), request(range(80))
    shared.submit(first)
    compute(shared)
    shared.submit(second)
    compute(shared)
    assert first.blocks[:4] == second.blocks[:4]
    assert not set(first.blocks[4:]) & set(second.blocks[4:])
    assert pool.used == 5 + 6 - 4
    first.cancel()
    shared.retire()
    assert pool.used == 6
    assert second.blocks[4] not in (found := [pool.find(digest) for digest in first.digests])
    assert found == second.blocks[:4]


def test_blocks_are_found_once_they_are_full_and_computed() -> None:
    shared, long = Batcher(BlockPool(100), 8), request(range(70))
    shared.submit(long)
    compute(shared, most_tokens=40)
    shared.submit(request(range(70)))
    assert sorted(compute(shared, most_tokens=100).values()) == [30, 70 - 32]


def test_rows_of_a_request_that_ended_within_the_pass_are_never_found() -> None:
    """The pass skips such a request's attention from some layer on."""
    shared, gone = Batcher(BlockPool(100), 8), request(range(70))
    shared.submit(gone)
    pieces = shared.next_pass(512)
    gone.cancel()
    shared.computed(pieces)
    assert run(shared, request(range(70))) == [70]


def test_the_least_recently_used_blocks_go_first_and_the_last_of_a_prompt_before_its_first() -> None:
    pool = BlockPool(8)
    shared = Batcher(pool, 8)
    old, new = list(range(48)), list(range(100, 148))
    run(shared, request(old, new_tokens=1), request(new, new_tokens=1))
    assert (pool.used, pool.cached) == (0, 6)
    run(shared, request(range(200, 240), scope=None, new_tokens=1))
    assert pool.cached == 5, "three blocks, two of them free"
    assert pool.take(6 * BLOCK_TOKENS) is not None
    assert pool.cached == 2
    pool.give_back([])
    assert [len(list(shared.prefixes._find(request(prompt)))) for prompt in (old, new)] == [0, 2]


def test_cached_blocks_make_nobody_wait() -> None:
    pool = BlockPool(6)
    shared = Batcher(pool, 8)
    run(shared, request(range(80), new_tokens=1))
    assert pool.cached == 5
    both = [request(range(300, 340), new_tokens=8), request(range(400, 440), new_tokens=8)]
    for one in both:
        shared.submit(one)
    assert compute(shared) == dict.fromkeys(both, 40)
    assert pool.peak == 6


def test_a_request_that_does_not_fit_takes_nothing_and_keeps_its_prefix() -> None:
    pool = BlockPool(6)
    shared, prompt = Batcher(pool, 8), list(range(48))
    run(shared, request(prompt, new_tokens=1))
    other, again = request(range(100, 130), new_tokens=18), request(prompt, new_tokens=33)
    shared.submit(other)
    shared.submit(again)
    compute(shared)
    assert (shared.waiting, again.blocks, pool.used) == (1, [], 3)
    other.cancel()
    shared.retire()
    assert compute(shared) == {again: 16}


def test_a_failure_drops_everything() -> None:
    pool = BlockPool(20)
    shared, running = Batcher(pool, 8), request(range(40), new_tokens=9)
    run(shared, request(range(40)))
    shared.submit(running)
    compute(shared)
    shared.fail(RuntimeError("disk"))
    shared.restart()
    assert (pool.used, pool.cached) == (0, 0)
    assert run(shared, request(range(40))) == [40]


def test_an_answer_that_is_computed_anew_does_not_go_on_from_a_prompt_that_repeats_it() -> None:
    """Tokens of a prompt round differently."""
    shared, first = Batcher(BlockPool(8), 8), request(range(32), new_tokens=40)
    shared.submit(first)
    for _ in range(30):
        compute(shared)
    second = request([*first.prompt_ids, *first.token_ids[:18]], priority=-1)
    shared.submit(second)
    compute(shared)
    shared.restart()
    assert compute(shared) == {second: 51}, "there is no room for both without what they shared"
    assert compute(shared) == {second: 1, first: 63 - 32}


def test_a_block_is_hashed_once_per_sequence(monkeypatch: object) -> None:
    from pipeline.state import prefix_cache

    taken: Counter[bytes] = Counter()
    digest = prefix_cache._digest

    def counted(kind: bytes, *parts: bytes) -> bytes:
        taken[kind] += 1
        return digest(kind, *parts)

    monkeypatch.setattr(prefix_cache, "_digest", counted)  # type: ignore[attr-defined]
    shared = Batcher(BlockPool(100), 1)
    run(shared, request(range(160), new_tokens=33))
    assert taken == {b"block": (160 + 32) // BLOCK_TOKENS}
    waiting = request(range(160))
    shared.submit(request(range(1000), None, new_tokens=40))
    shared.submit(waiting)
    for _ in range(30):
        compute(shared)
    assert taken[b"block"] == 12, "it has not been looked at while it could not run"


@given(
    st.integers(2, 14), st.integers(0, 2**32), st.none() | st.integers(0, 5), st.lists(st.integers(0, 99), max_size=50)
)
def test_whatever_comes_and_goes(blocks: int, seed: int, snapshots: int | None, moves: list[int]) -> None:
    machine = Machine(blocks, seed, snapshots)
    for move in moves:
        if move < 40:
            machine.submit(blocks)
        elif move < 90:
            if machine.shared.wanted:
                machine.run_pass(move - 39)
        elif move < 96 and machine.requests:
            machine.requests[move % len(machine.requests)].cancel()
            machine.shared.retire()
        elif move == 96:
            machine.lose(machine.draw.randrange(blocks))
            machine.lose_state()
        elif move > 96:
            if move > 97:
                machine.shared.fail(RuntimeError("disk"), those_that_run=move > 98)
            machine.shared.restart()
            machine.rows.clear()
            machine.slots.clear()
        machine.check()
    while machine.shared.wanted:
        machine.run_pass(64)
        machine.check()
    assert machine.pool.used == 0
    assert all(one.ended for one in machine.requests), "nobody waits for ever"
