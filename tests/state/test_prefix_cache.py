"""Shared blocks: each is held, cached or free, and what is found holds exactly what was looked for."""

import random
from array import array
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.generation.batching import Batcher
from pipeline.generation.sampling import Choice, SamplingParameters
from pipeline.generation.sequence import RunningSequence
from pipeline.state.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from pipeline.state.prefix_cache import COMMON_SCOPE, named_scope, private_scope

A, B = named_scope("a"), named_scope("b")


def request(prompt: range | list[int], scope: bytes | None = A, new_tokens: int = 4, **options: int) -> RunningSequence:
    parameters = SamplingParameters(max_new_tokens=new_tokens)
    return RunningSequence(array("i", prompt), parameters, frozenset(), None, 1 << 20, scope=scope, **options)


def compute(shared: Batcher, most_tokens: int = 512) -> dict[RunningSequence, int]:
    """One pass; returns the tokens that each brought."""
    pieces = shared.next_pass(most_tokens)
    shared.computed(pieces)
    for piece in pieces:
        if piece.logit_rows and not piece.sequence.ended:
            piece.sequence.accept(Choice(7, None))
    shared.retire()
    return {piece.sequence: len(piece.token_ids) for piece in pieces}


def run(shared: Batcher, *requests: RunningSequence) -> list[int]:
    """Run requests one after the other to their ends; returns what each computed in its first pass."""
    first = []
    for one in requests:
        shared.submit(one)
        first.append(compute(shared)[one])
        while not one.ended:
            compute(shared)
    return first


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


class Machine:
    """A batcher under random requests, whose blocks carry what was last written to them."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.pool = BlockPool(blocks)
        self.shared = Batcher(self.pool, 5)
        self.draw = random.Random(seed)
        self.requests: list[RunningSequence] = []
        self.rows: dict[tuple[int, int], tuple[bytes | None, tuple[int, ...]]] = {}

    def submit(self, blocks: int) -> None:
        tokens = self.draw.randint(1, max(1, (blocks - 1) * BLOCK_TOKENS))
        # Few different tokens that change rarely: many prompts begin alike, and end differently.
        prompt = [self.draw.randint(0, 1) * (index % 24 == 23) for index in range(tokens)]
        scope = self.draw.choice([A, A, B, None])
        priority = self.draw.randint(-1, 1)
        one = request(prompt, scope, new_tokens=self.draw.randint(1, BLOCK_TOKENS), priority=priority)
        self.requests.append(one)
        self.shared.submit(one)

    def run_pass(self, most_tokens: int) -> None:
        """Write each row with all that it depends on, and check that what it attends to is its own past."""
        pieces = self.shared.next_pass(most_tokens)
        for piece in pieces:
            one, end = piece.sequence, piece.start + len(piece.token_ids)
            for position in range(piece.start, end):
                place = one.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
                self.rows[place] = one.scope, one.tokens(0, position + 1)
        for piece in pieces:
            one, end = piece.sequence, piece.start + len(piece.token_ids)
            for position in range(end):
                place = one.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
                assert self.rows[place] == (one.scope, one.tokens(0, position + 1))
        if pieces and self.draw.random() < 0.2:
            self.skip(self.draw.choice(pieces).sequence)
        self.shared.computed(pieces)
        for piece in pieces:
            if piece.logit_rows and not piece.sequence.ended:
                piece.sequence.accept(Choice(self.draw.randint(0, 1), None))
        self.shared.retire()

    def skip(self, one: RunningSequence) -> None:
        """Cancelled within a pass: from some layer on its new rows hold anything."""
        one.cancel()
        for position in range(one.cached_tokens, len(one.blocks) * BLOCK_TOKENS):
            self.rows[one.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS] = None, ()

    def lose(self, block: int) -> None:
        """A disk gave a block back damaged, or did not take it."""
        for one in self.requests:
            if block in one.blocks:
                one.fail(RuntimeError("damaged"))
        self.pool.lose(block)
        self.rows |= {(block, row): (None, ()) for row in range(BLOCK_TOKENS)}
        self.shared.retire()

    def check(self) -> None:
        """Every block is in exactly one state; only full blocks with equal digests are in two tables."""
        pool, tables = self.pool, [one for one in self.requests if one.blocks]
        holders = Counter(block for one in tables for block in one.blocks)
        held, cached, free = set(holders), set(pool._cached), set(pool._free)
        assert len(held) + len(cached) + len(free) == pool.blocks == len(held | cached | free)
        assert (len(held), len(cached), len(free)) == (pool.used, pool.cached, len(pool._free))
        assert [*pool._holders] == [holders[block] for block in range(pool.blocks)]
        assert pool._found == {digest: block for block, digest in pool._digests.items()}
        assert set(pool._digests) <= held | cached
        assert cached <= set(pool._digests)
        for one in tables:
            assert len(one.blocks) == blocks_for(one.most_tokens) == len(set(one.blocks))
            for index, block in enumerate(one.blocks):
                if holders[block] > 1:
                    assert (index + 1) * BLOCK_TOKENS <= one.cached_tokens
                    assert one.scope is not None
                    assert pool._digests[block] == one.digests[index]


@given(st.integers(2, 14), st.integers(0, 2**32), st.lists(st.integers(0, 99), max_size=50))
def test_whatever_comes_and_goes(blocks: int, seed: int, moves: list[int]) -> None:
    machine = Machine(blocks, seed)
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
        elif move > 96:
            if move > 97:
                machine.shared.fail(RuntimeError("disk"), those_that_run=move > 98)
            machine.shared.restart()
            machine.rows.clear()
        machine.check()
    while machine.shared.wanted:
        machine.run_pass(64)
        machine.check()
    assert machine.pool.used == 0
    assert all(one.ended for one in machine.requests), "nobody waits for ever"
