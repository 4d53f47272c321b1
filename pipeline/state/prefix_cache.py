"""Requests that begin with the same tokens compute them once: full KV blocks are found by what they depend on.

The digest of a block is taken over the digest of the block before it and its own tokens; that of the first one over
its scope, and over the length by which its rotary frequencies are chosen, where one counts. So equal digests mean the
same tokens at the same positions behind the same past, rotated alike, in the same scope. Only full blocks are shared,
which are not written to any more.
"""

import hashlib
import itertools
import secrets
from array import array
from collections.abc import Iterator, Sequence

from pipeline.state.blocks import BLOCK_TOKENS, BlockPool
from pipeline.state.cached import CachedSequence
from pipeline.state.state_slots import StateSlots
from pipeline.system.threads import slices

DIGEST_BYTES = 32
SLICE_BLOCKS = 256


def _digest(kind: bytes, *parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=DIGEST_BYTES, person=kind).digest()


COMMON_SCOPE = _digest(b"common")
"""The scope of all calls that name none, where `share_prefixes` lets them share."""


def named_scope(name: str) -> bytes:
    """The scope of all calls that give the same name."""
    return _digest(b"named", name.encode("utf-8", "surrogatepass"))


def private_scope() -> bytes:
    """A scope that no other call has."""
    return secrets.token_bytes(DIGEST_BYTES)


def digest_prompt(sequence: CachedSequence, earlier: Sequence[CachedSequence]) -> None:
    """Take the digests by which a prompt is looked up, or those of a sample before it: later they are at hand."""
    if sequence.scope is not None:
        sequence.digests = list(earlier[0].digests) if earlier else []
        full_blocks = (len(sequence.prompt_ids) - 1) // BLOCK_TOKENS
        for begin in slices(full_blocks, SLICE_BLOCKS):
            _block_digest(sequence, sequence.scope, min(begin + SLICE_BLOCKS, full_blocks) - 1)


class PrefixCache:
    """Gives requests their blocks, those first that hold the beginning of their prompt already.

    With `share_answers` blocks of answers are found too. Their numbers are those of tokens that were computed one by
    one, which rounds differently from computing them as a prompt. `queried_tokens` counts the tokens of admitted
    prompts that were looked up, `hit_tokens` those found. A model with recurrent layers has `states`: of known blocks a
    request can use those alone behind which there is a snapshot of the state.
    """

    def __init__(self, pool: BlockPool, states: StateSlots | None = None, *, share_answers: bool = True) -> None:
        self.pool = pool
        self.states = states
        self._share_answers = share_answers
        self.queried_tokens = 0
        self.hit_tokens = 0

    def admit(self, sequence: CachedSequence) -> bool:
        """Take the blocks of a request's worst case; false, and nothing taken, while there is no room for them."""
        shared = known = list(self._find(sequence))
        if self.states is not None:
            shared = known[: self.usable(sequence.digests[: len(known)])]
        table = self.pool.take(sequence.most_tokens, shared)
        if table is None:
            return False
        if self.states is not None:
            digest = sequence.digests[len(shared) - 1] if shared else None
            sequence.held_state = self.states.take(digest, len(known) * BLOCK_TOKENS)
        if sequence.scope is not None and not sequence.computes_prompt:
            self.queried_tokens += sequence.waiting_count
        sequence.blocks, sequence.cached_tokens = table, len(shared) * BLOCK_TOKENS
        if sequence.scope is not None:
            self.hit_tokens += sequence.cached_tokens
        return True

    def snapshots(self, sequence: CachedSequence, count: int) -> tuple[tuple[int, int], ...]:
        """Choose behind which of its next `count` tokens snapshots are taken: by index among these, each with its slot.

        In a prompt behind the last block that another one that begins alike could use, and behind the last block that
        was known already, where the next one that shares no more will begin; in an answer behind its newest full block.
        """
        held, scope, start = sequence.held_state, sequence.scope, sequence.cached_tokens
        if self.states is None or held is None or scope is None:
            return ()
        last = (len(sequence.prompt_ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        edges = {edge: False for edge in (held.branch, last) if start < edge <= start + count}
        newest = (start + count) // BLOCK_TOKENS * BLOCK_TOKENS
        if self._share_answers and newest > max(start, last):
            edges[newest] = True
        taken = []
        for edge, of_answer in sorted(edges.items()):
            digest = _block_digest(sequence, scope, edge // BLOCK_TOKENS - 1)
            if (slot := self.states.snapshot(held, digest, of_answer=of_answer)) is not None:
                taken.append((edge - start - 1, slot))
        return tuple(taken)

    def computed(self, sequence: CachedSequence, start: int) -> None:
        """Let others find what a sequence has computed from position `start` on: full blocks, and snapshots."""
        if sequence.scope is not None:
            prompt_tokens, end = len(sequence.prompt_ids), sequence.cached_tokens
            end = end if self._share_answers else min(end, prompt_tokens)
            for index in range(start // BLOCK_TOKENS, end // BLOCK_TOKENS):
                self.pool.register(sequence.blocks[index], _block_digest(sequence, sequence.scope, index))
        if self.states is not None and sequence.held_state is not None:
            self.states.computed(sequence.held_state)

    def give_back(self, sequence: CachedSequence) -> None:
        """Take back what a sequence holds."""
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        if self.states is not None and sequence.held_state is not None:
            self.states.give_back(sequence.held_state)
            sequence.held_state = None

    def usable(self, digests: Sequence[bytes]) -> int:
        """How many of the first known blocks can be used: where there are states, up to the last with a snapshot."""
        if self.states is None:
            return len(digests)
        return next((count for count in range(len(digests), 0, -1) if self.states.knows(digests[count - 1])), 0)

    def hold(self, digests: Sequence[bytes]) -> list[int]:
        """Take those of the first of these blocks that are known, which stay until `pool` is given them back."""
        known = list(itertools.takewhile(lambda block: block is not None, map(self.pool.find, digests)))
        held = [block for block in known if block is not None]
        return self.pool.take(len(held) * BLOCK_TOKENS, held) or []

    def forget(self) -> None:
        """Let nothing be found any more, because what was cached is not known."""
        self.pool.forget()
        if self.states is not None:
            self.states.forget()

    def _find(self, sequence: CachedSequence) -> Iterator[int]:
        """The first blocks of its prompt, but for its last token: to get logits, one token must be computed.

        None of an answer that is computed anew: another one may have computed these tokens as a prompt.
        """
        if sequence.scope is not None and not sequence.computes_prompt:
            most = min(sequence.waiting_count - 1, len(sequence.prompt_ids))
            for index in range(most // BLOCK_TOKENS):
                block = self.pool.find(_block_digest(sequence, sequence.scope, index))
                if block is None:
                    return
                yield block


def _block_digest(sequence: CachedSequence, scope: bytes, index: int) -> bytes:
    """The digest of a full block, and of those before it, each of which is taken once per sequence."""
    digests = sequence.digests
    scope = _rotated(scope, sequence.rope_length)
    while len(digests) <= index:
        begin = len(digests) * BLOCK_TOKENS
        digests.append(_next_digest(digests, scope, sequence.tokens(begin, begin + BLOCK_TOKENS)))
    return digests[index]


def block_digests(token_ids: Sequence[int], scope: bytes, rope_length: int) -> list[bytes]:
    """The digests of the full blocks of a sequence that does not run."""
    digests: list[bytes] = []
    for begin in range(0, len(token_ids) - len(token_ids) % BLOCK_TOKENS, BLOCK_TOKENS):
        part = token_ids[begin : begin + BLOCK_TOKENS]
        digests.append(_next_digest(digests, _rotated(scope, rope_length), part))
    return digests


def _rotated(scope: bytes, rope_length: int) -> bytes:
    return _digest(b"rotated", scope, array("q", [rope_length]).tobytes()) if rope_length else scope


def _next_digest(digests: Sequence[bytes], scope: bytes, token_ids: Sequence[int]) -> bytes:
    return _digest(b"block", digests[-1] if digests else scope, array("q", token_ids).tobytes())
