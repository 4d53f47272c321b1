"""Which sequence has which KV blocks: block tables as lists of numbers, no tensors.

A block holds the keys and values of `BLOCK_TOKENS` consecutive positions of one sequence, in every layer.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 16


def blocks_for(tokens: int) -> int:
    """How many blocks hold so many positions."""
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """All blocks of a cache, each of them held by block tables, or cached, or free.

    A request takes the blocks of its worst case at once, so that no running request ever waits for another's. A block
    with a digest can be found by it; when no table holds it any more it is cached, and evicted, the least recently used
    first, as soon as there are too few free blocks. So cached blocks make no request wait.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.peak = 0
        # in lists, millions of blocks would delay all tasks at each garbage collection
        self._free = array("i", range(blocks - 1, -1, -1))
        self._holders = array("i", [0]) * blocks
        self._cached: OrderedDict[int, None] = OrderedDict()  # a set, the least recently used first
        self._digests: dict[int, bytes] = {}
        self._found: dict[bytes, int] = {}

    @property
    def used(self) -> int:
        """Blocks that are in a table."""
        return self.blocks - len(self._free) - len(self._cached)

    @property
    def cached(self) -> int:
        """Blocks that can be found by their digest, and are in no table."""
        return len(self._cached)

    def take(self, tokens: int, shared: Sequence[int] = ()) -> list[int] | None:
        """A block table for so many positions, which begins with `shared`; None while there is no room for the rest."""
        count = blocks_for(tokens) - len(shared)
        if count > len(self._free) + len(self._cached) - sum(block in self._cached for block in shared):
            return None
        for block in shared:
            self._cached.pop(block, None)
        table = [*shared, *(self._vacate() for _ in range(count))]
        for block in table:
            self._holders[block] += 1
        self.peak = max(self.peak, self.used)
        return table

    def give_back(self, table: Sequence[int]) -> None:
        """Let go of a table. Its last blocks are evicted first: without those before them they cannot be used."""
        for block in reversed(table):
            self._holders[block] -= 1
            if not self._holders[block]:
                if block in self._digests:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def register(self, block: int, digest: bytes) -> None:
        """Let a block that a table holds be found, from now on, by a digest of all that it depends on.

        Where another block has the same digest, and so the same contents, that one stays the one to be found.
        """
        if digest not in self._found:
            self._found[digest] = block
            self._digests[block] = digest

    def find(self, digest: bytes) -> int | None:
        """The block with this digest."""
        return self._found.get(digest)

    def lose(self, block: int) -> None:
        """Let a block not be found any more, because what it holds is not known."""
        if (digest := self._digests.pop(block, None)) is not None:
            del self._found[digest]
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def forget(self) -> None:
        """Let no block be found any more, because what they hold is not known."""
        self._free.extend(self._cached)
        for contents in (self._cached, self._digests, self._found):
            contents.clear()

    def _vacate(self) -> int:
        """A block to be written anew: a free one, else the cached one that was used least recently."""
        if self._free:
            return self._free.pop()
        block, _ = self._cached.popitem(last=False)
        del self._found[self._digests.pop(block)]
        return block
