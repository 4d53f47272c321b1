"""Words of 32 bits that hold several numbers.

Letters in names: D columns, F rows of a matrix, W words of a row.
"""

import torch


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers of 4 or 8 bits in words, lowest bits first, as uint8: the last axis grows by what a word holds."""
    if bits == 8:
        return words.view(torch.uint8)
    pairs = words.view(torch.uint8).to(torch.int16)
    return pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F).view(torch.uint8)


def transposed(words: torch.Tensor) -> torch.Tensor:
    """A copy with rows for columns. Torch is slow where they are cut out of longer ones, and so these are copied first.

    Unlike `contiguous`, a clone has no odd strides where there is but one row.
    """
    return words.contiguous().T.clone(memory_format=torch.contiguous_format)


def by_row(words_DW: torch.Tensor) -> torch.Tensor:
    """The numbers in the words of columns, by row: [8 W, D] as uint8.

    From its lowest bits on a word has rows 0, 2, 4, 6, 1, 3, 5 and 7. With the rows as 4 a + 2 b + c, byte 2 c + a has
    those of b = 0 in its lower half and those of b = 1 in its upper one.
    """
    columns, words = words_DW.shape
    bytes_DWb = words_DW.contiguous().view(torch.uint8).view(columns, words, 4)
    bytes_WacD = bytes_DWb.permute(1, 2, 0).contiguous().view(words, 2, 2, columns).transpose(1, 2)
    return torch.stack((bytes_WacD & 15, bytes_WacD >> 4), dim=2).view(-1, columns)
