"""What a pass tells the device about its tokens: whose they are, where they stand, where their KV goes."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import pad

from actors.core.event import Event
from actors.core.ports import Copy
from pipeline.devices.port import Device
from pipeline.generation.batching import Piece, most_logit_rows
from pipeline.models.attention import Rows, SequenceRows
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for


class PassInputs:
    """Numbers of one pass, int64, in host memory and on the device; filled anew by every `send`.

    First the positions of all tokens, the blocks that they go to and their rows in them, then which tokens get a row of
    logits, then the block tables one after the other.
    """

    def __init__(self, device: Device, max_tokens: int, max_requests: int, context_tokens: int) -> None:
        self._device = device
        nbytes = self.nbytes(max_tokens, max_requests, context_tokens)
        self._host, self._numbers = device.host_memory(nbytes), device.device_memory(nbytes)

    @staticmethod
    def nbytes(max_tokens: int, max_requests: int, context_tokens: int) -> int:
        """The memory that it takes, in either place. Tables may share blocks, so each may be as long as the longest."""
        tables = max_requests * blocks_for(context_tokens)
        return (3 * max_tokens + most_logit_rows(max_requests) + tables) * torch.int64.itemsize

    def send(self, pieces: Sequence[Piece]) -> Event:
        """Put the numbers of a pass on the device; returns the event of their upload."""
        self._pieces = pieces
        self._ends = list(itertools.accumulate(len(piece.token_ids) for piece in pieces))
        self._logit_rows = [
            row for piece, end in zip(pieces, self._ends, strict=True) for row in range(end - piece.logit_rows, end)
        ]
        numbers = list(itertools.chain(*self._columns()))
        self._host.tensor.view(torch.int64)[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        copies = (Copy(0, 0, len(numbers) * torch.int64.itemsize),)
        return self._device.upload(self._host, self._numbers, copies, ())

    def positions(self, begin: int, end: int) -> torch.Tensor:
        """The positions of tokens [begin, end) in their sequences, and zeros for rows behind the last token.

        Like all below, only after the event of `send`.
        """
        positions_T = self._part(begin, min(end, self._ends[-1]))
        return pad(positions_T, (0, end - begin - len(positions_T)))

    def rope_lengths(self, begin: int, end: int) -> list[int]:
        """The rope length of the sequence of each of tokens [begin, end), and zeros for rows behind the last token."""
        lengths = itertools.chain.from_iterable([piece.rope_length] * len(piece.token_ids) for piece in self._pieces)
        of_tokens = list(itertools.islice(lengths, begin, end))
        return of_tokens + [0] * (end - begin - len(of_tokens))

    def logit_rows(self, begin: int, end: int) -> torch.Tensor:
        """The tokens of rows [begin, end) of logits, in the order of the pieces, and the first behind the last."""
        first, last = 3 * self._ends[-1], min(end, len(self._logit_rows))
        return pad(self._part(first + begin, first + last), (0, end - last))

    def rows(self, begin: int, end: int) -> Rows:
        """Where tokens [begin, end) of the pass go, counted from `begin`. Rows behind the last token belong to none."""
        tokens = self._ends[-1]
        table = 3 * tokens + len(self._logit_rows)
        sequences = []
        for piece, piece_end in zip(self._pieces, self._ends, strict=True):
            piece_begin = piece_end - len(piece.token_ids)
            blocks = _blocks(piece)
            first, last = max(begin, piece_begin), min(end, piece_end)
            if first < last:
                start = piece.start + first - piece_begin
                blocks_B = self._part(table, table + blocks)
                ended = functools.partial(_ended, piece)
                prompt_tokens = len(piece.sequence.prompt_ids)
                sequences.append(SequenceRows(first - begin, last - begin, start, prompt_tokens, blocks_B, ended))
            table += blocks
        if end > tokens:
            nowhere_B = self._part(table, table)
            sequences.append(SequenceRows(max(tokens, begin) - begin, end - begin, 0, 0, nowhere_B, lambda: True))
        last = min(end, tokens)
        blocks_T, offsets_T = (self._part(column * tokens + begin, column * tokens + last) for column in (1, 2))
        return Rows(blocks_T, offsets_T, sequences)

    def _columns(self) -> Iterator[list[int]]:
        positions = [piece.start + index for piece in self._pieces for index in range(len(piece.token_ids))]
        yield positions
        tables = [piece.sequence.blocks for piece in self._pieces for _ in piece.token_ids]
        yield [table[position // BLOCK_TOKENS] for table, position in zip(tables, positions, strict=True)]
        yield [position % BLOCK_TOKENS for position in positions]
        yield self._logit_rows
        for piece in self._pieces:
            yield piece.sequence.blocks[: _blocks(piece)]

    def _part(self, begin: int, end: int) -> torch.Tensor:
        return self._numbers.tensor.view(torch.int64)[begin:end]


def _ended(piece: Piece) -> bool:
    return piece.sequence.ended


def _blocks(piece: Piece) -> int:
    """How many blocks of its sequence a piece attends to."""
    return blocks_for(piece.start + len(piece.token_ids))
