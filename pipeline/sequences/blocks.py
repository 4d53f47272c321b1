"""Which KV blocks are whose: block tables as lists of numbers, no tensors.

A block holds the keys and values of `BLOCK_TOKENS` consecutive positions of one sequence, in every layer.
"""

from collections.abc import Sequence

BLOCK_TOKENS = 16


def blocks_for(tokens: int) -> int:
    """How many blocks hold so many positions."""
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """All blocks of a cache, each free or in one block table.

    A request takes the blocks of its worst case at once, so that no running request ever waits for another's.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.peak = 0
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def used(self) -> int:
        """Blocks that are in a table."""
        return self.blocks - len(self._free)

    def take(self, tokens: int) -> list[int] | None:
        """A block table for so many positions; None while there are not enough free blocks."""
        count = blocks_for(tokens)
        if count > len(self._free):
            return None
        table = [self._free.pop() for _ in range(count)]
        self.peak = max(self.peak, self.used)
        return table

    def give_back(self, table: Sequence[int]) -> None:
        """Free the blocks of a table that nobody reads or writes any more."""
        self._free.extend(reversed(table))
