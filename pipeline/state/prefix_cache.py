"""Requests that begin with the same tokens compute them once: full KV blocks are found by what they depend on.

The digest of a block is taken over the digest of the block before it and its own tokens; that of the first one over
its scope, and over the length by which its rotary frequencies are chosen, where one counts. So equal digests mean the
same tokens at the same positions behind the same past, rotated alike, in the same scope. Only full blocks are shared,
which are not written to any more.
"""

import hashlib
import secrets
from array import array
from collections.abc import Iterator, Sequence

from pipeline.state.blocks import BLOCK_TOKENS, BlockPool
from pipeline.state.cached import CachedSequence
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
    prompts that were looked up, `hit_tokens` those found.
    """

    def __init__(self, pool: BlockPool, *, share_answers: bool = True) -> None:
        self.pool = pool
        self._share_answers = share_answers
        self.queried_tokens = 0
        self.hit_tokens = 0

    def admit(self, sequence: CachedSequence) -> bool:
        """Take the blocks of a request's worst case; false, and nothing taken, while there is no room for them."""
        shared = list(self._find(sequence))
        table = self.pool.take(sequence.most_tokens, shared)
        if table is None:
            return False
        if sequence.scope is not None:
            self.queried_tokens += sequence.waiting_count
        sequence.blocks, sequence.cached_tokens = table, len(shared) * BLOCK_TOKENS
        if sequence.scope is not None:
            self.hit_tokens += sequence.cached_tokens
        return True

    def register(self, sequence: CachedSequence, start: int) -> None:
        """Let others find the full blocks among those whose rows from position `start` on have been computed."""
        if sequence.scope is not None:
            prompt_tokens, end = len(sequence.prompt_ids), sequence.cached_tokens
            end = end if self._share_answers else min(end, prompt_tokens)
            for index in range(start // BLOCK_TOKENS, end // BLOCK_TOKENS):
                self.pool.register(sequence.blocks[index], _block_digest(sequence, sequence.scope, index))

    def _find(self, sequence: CachedSequence) -> Iterator[int]:
        """The first blocks of its tokens, but for the last one: to get logits, one token must be computed."""
        if sequence.scope is not None:
            for index in range((sequence.waiting_count - 1) // BLOCK_TOKENS):
                block = self.pool.find(_block_digest(sequence, sequence.scope, index))
                if block is None:
                    return
                yield block


def _block_digest(sequence: CachedSequence, scope: bytes, index: int) -> bytes:
    """The digest of a full block, and of those before it, each of which is taken once per sequence."""
    digests = sequence.digests
    if sequence.rope_length:
        scope = _digest(b"rotated", scope, array("q", [sequence.rope_length]).tobytes())
    while len(digests) <= index:
        begin = len(digests) * BLOCK_TOKENS
        token_ids = array("q", sequence.tokens(begin, begin + BLOCK_TOKENS))
        digests.append(_digest(b"block", digests[-1] if digests else scope, token_ids.tobytes()))
    return digests[index]
