"""Requests that share blocks and snapshots of recurrent state, run through a batcher without a model."""

import random
from array import array
from collections import Counter

from pipeline.generation.batching import Batcher, Piece
from pipeline.generation.sampling import Choice, SamplingParameters
from pipeline.generation.sequence import RunningSequence
from pipeline.state.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from pipeline.state.prefix_cache import named_scope
from pipeline.state.state_slots import StateSlots

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


class Machine:
    """A batcher under random requests, whose blocks and slots of state carry what was last written to them.

    There is no recurrent state where `snapshots` is None.
    """

    def __init__(self, blocks: int, seed: int, snapshots: int | None) -> None:
        self.pool = BlockPool(blocks)
        self.states = None if snapshots is None else StateSlots(5, snapshots)
        self.shared = Batcher(self.pool, 5, states=self.states)
        self.draw = random.Random(seed)
        self.requests: list[RunningSequence] = []
        self.rows: dict[tuple[int, int], tuple[bytes | None, tuple[int, ...]]] = {}
        self.slots: dict[int, tuple[bytes | None, tuple[int, ...]]] = {}

    def submit(self, blocks: int, most_new: int = BLOCK_TOKENS) -> None:
        tokens = self.draw.randint(1, max(1, (blocks - 1) * BLOCK_TOKENS))
        # Few different tokens that change rarely: many prompts begin alike, and end differently.
        prompt = [self.draw.randint(0, 1) * (index % 24 == 23) for index in range(tokens)]
        scope = self.draw.choice([A, A, B, None])
        priority = self.draw.randint(-1, 1)
        one = request(prompt, scope, new_tokens=self.draw.randint(1, most_new), priority=priority)
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
        self.run_states(pieces)
        if pieces and self.draw.random() < 0.2:
            self.skip(self.draw.choice(pieces).sequence)
        self.shared.computed(pieces)
        for piece in pieces:
            if piece.logit_rows and not piece.sequence.ended:
                piece.sequence.accept(Choice(int(self.draw.random() < 0.1), None))
        self.shared.retire()

    def run_states(self, pieces: list[Piece]) -> None:
        """Read all states, then write them, in the order in which sequences share a pass: whichever that is."""
        for piece in pieces:
            if self.states is None:
                assert (piece.state_read, piece.state_write, piece.snapshots) == (-1, -1, ())
            elif piece.start:
                assert self.slots[piece.state_read] == (piece.sequence.scope, piece.sequence.tokens(0, piece.start))
            else:
                assert piece.state_read == -1
        written = [slot for piece in pieces for slot in (piece.state_write, *(slot for _, slot in piece.snapshots))]
        read_by = {piece.state_read: piece.state_write for piece in pieces if piece.state_read >= 0}
        if self.states is not None:
            assert len(set(written)) == len(written)
            for piece in pieces:
                one, end = piece.sequence, piece.start + len(piece.token_ids)
                ends = {piece.state_write: end} | {slot: piece.start + index + 1 for index, slot in piece.snapshots}
                for slot, position in ends.items():
                    assert read_by.get(slot, piece.state_write) == piece.state_write, "another reads it in this pass"
                    self.slots[slot] = one.scope, one.tokens(0, position)

    def skip(self, one: RunningSequence) -> None:
        """Cancelled within a pass: from some layer on its new rows hold anything."""
        one.cancel()
        for position in range(one.cached_tokens, len(one.blocks) * BLOCK_TOKENS):
            self.rows[one.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS] = None, ()
        if one.held_state is not None:
            self.slots |= dict.fromkeys((one.held_state.own, *(slot for _, slot in one.held_state.taking)), (None, ()))

    def lose(self, block: int) -> None:
        """A disk gave a block back damaged, or did not take it."""
        for one in self.requests:
            if block in one.blocks:
                one.fail(RuntimeError("damaged"))
        self.pool.lose(block)
        self.rows |= {(block, row): (None, ()) for row in range(BLOCK_TOKENS)}
        self.shared.retire()

    def lose_state(self) -> None:
        """The same of a slot: those that hold it or are to begin with it cannot go on."""
        if self.states is not None:
            slot = self.draw.randrange(self.states.slots)
            for one in self.requests:
                if one.held_state is not None and slot in (one.held_state.own, one.held_state.read):
                    one.fail(RuntimeError("damaged"))
            self.states.lose(slot)
            self.slots[slot] = None, ()
            self.shared.retire()

    def check(self) -> None:
        """No block and no slot is lost."""
        self.check_blocks()
        if self.states is not None:
            self.check_states(self.states)

    def check_states(self, states: StateSlots) -> None:
        """Every slot is in exactly one state, and there is one for each request that may yet come."""
        held = [one.held_state for one in self.requests if one.held_state is not None]
        mine = [slot for one in held for slot in (one.own, *(slot for _, slot in one.taking))]
        starts = Counter(one.read for one in held if one.read not in (one.own, -1))
        assert states._pinned == starts
        lost = set(starts) - set(states._kept)
        assert sorted([*mine, *states._free, *states._kept, *lost]) == list(range(states.slots))
        assert states._found == {digest: slot for slot, digest in states._kept.items()}
        assert states.used == len(held) == self.shared.running
        assert len(states._free) + len(set(states._kept) - set(starts)) >= 5 - states.used

    def check_blocks(self) -> None:
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
