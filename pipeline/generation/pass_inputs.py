"""What a pass tells the device about its tokens: whose they are, where they stand, where their KV goes."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch

from actors.core.event import Event
from actors.core.message import READY
from actors.core.ports import Copy
from pipeline.devices.memory import copy_bytes
from pipeline.devices.port import Device
from pipeline.generation.batching import Piece
from pipeline.generation.sequence import RunningSequence
from pipeline.groups.layout import merge_copies
from pipeline.models.pass_rows import TILE, Rows, SequenceRows, parts_for, tile_parts_for
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for

NO_TOKEN = (-1, -1, 0, -1, 0, 0, 0, -1, -1, 0, -1, -1)
(POSITION, BLOCK, TABLE, ANSWER, TILE_ROW, TILE_TOKENS, LOGIT_ROW) = range(7)
(STATE_READ, STATE_WRITE, RUN, SNAPSHOT, RUN_ROW) = range(7, len(NO_TOKEN))
"""The columns of `Rows`, and the rows that get logits."""
ITEM_BYTES = torch.int64.itemsize

Held: TypeAlias = dict[RunningSequence, tuple[int, list[int]]]
"""The row of each request's table, and what was written into it."""


class PassInputs:
    """Numbers of one pass, int64, in host memory and, at addresses that never change, on the device.

    For each row of the pass a row of numbers, filled anew by every `send`; for each request a row with its block table,
    which it keeps, and which is not sent again, as long as it is in every pass.
    """

    def __init__(self, device: Device, most_rows: int, max_requests: int, context_tokens: int) -> None:
        self._device = device
        nbytes = self.nbytes(most_rows, max_requests, context_tokens)
        self._memories = device.host_memory(nbytes), device.device_memory(nbytes)
        self._numbers_end = most_rows * len(NO_TOKEN) * ITEM_BYTES
        host, on_device = (memory.tensor[:nbytes] for memory in self._memories)
        numbers, tables = self._parts(host, max_requests)
        self._host_numbers, self._host_tables = numbers.numpy(), tables.numpy()
        self._numbers, self._tables = self._parts(on_device, max_requests)
        self._held: Held = {}
        self._pieces: Sequence[Piece] = ()
        self._moved_on = 0
        self._grids: dict[tuple[int, int], tuple[int, int, int, int]] = {}

    @staticmethod
    def nbytes(most_rows: int, max_requests: int, context_tokens: int) -> int:
        """The memory that it takes, in either place. Tables may share blocks, so each may be as long as the longest."""
        return (most_rows * len(NO_TOKEN) + max_requests * blocks_for(context_tokens)) * ITEM_BYTES

    def _parts(self, memory: torch.Tensor, max_requests: int) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, tables = memory[: self._numbers_end], memory[self._numbers_end :]
        return numbers.view(torch.int64).view(-1, len(NO_TOKEN)), tables.view(torch.int64).view(max_requests, -1)

    def send(self, pieces: Sequence[Piece], cuts: Sequence[tuple[int, int]], *, upload: bool = True) -> Event:
        """Put the numbers of a pass on the device, whose rows are computed in blocks [begin, end).

        Returns the event of their upload; without `upload`, of that of new tables, as a device records the `copy`.
        """
        before, self._pieces = self._pieces, pieces
        self._ends = list(itertools.accumulate(len(piece.token_ids) for piece in pieces))
        copies = self._hold_tables(pieces)
        if not copies and [*self._grids] == cuts and all(map(_goes_on, before, pieces)) and len(before) == len(pieces):
            self._move_on(len(pieces), cuts)
        else:
            self._fill(pieces, cuts)
        self._moved_on = 0
        copies = [*self._copies(cuts[-1][1]), *copies] if upload else copies
        return self._device.upload(*self._memories, copies, ()) if copies else READY

    def go_on(self, pieces: Sequence[Piece], cuts: Sequence[tuple[int, int]]) -> None:
        """Let the next pass be one of the next token of each answer in this one, for which the device is to `move_on`.

        The numbers in host memory stay behind: the device may not have copied them yet.
        """
        self._pieces = pieces
        self._moved_on += 1
        self._grids = {cut: _grid_of_answers(self._host_numbers[slice(*cut)], self._moved_on) for cut in cuts}

    def move_on(self, rows: int) -> None:
        """Make of the numbers of so many rows those of the pass that goes on, on the device."""
        numbers = self._numbers[:rows]
        positions, holds_token = numbers[:, POSITION], numbers[:, POSITION] >= 0
        positions += holds_token
        blocks = self._tables[numbers[:, TABLE], positions // BLOCK_TOKENS]
        numbers[:, BLOCK] = torch.where(holds_token, blocks, NO_TOKEN[BLOCK])

    def copy(self, rows: int) -> None:
        """Copy the numbers of so many rows to the device, on the lane that does this."""
        copy_bytes(*self._memories, self._copies(rows))

    def _copies(self, rows: int) -> Sequence[Copy]:
        return (Copy(0, 0, rows * len(NO_TOKEN) * ITEM_BYTES),)

    def positions(self, begin: int, end: int) -> torch.Tensor:
        """The positions of rows [begin, end) in their sequences, and -1 for rows behind the last token.

        Like all below, only after the event of `send`.
        """
        return self._numbers[begin:end, POSITION]

    def rope_lengths(self, begin: int, end: int) -> list[int]:
        """The rope length of the sequence of each of rows [begin, end), 0 behind the last token; [] if all are 0."""
        if not any(piece.rope_length for piece in self._pieces):
            return []
        lengths = itertools.chain.from_iterable([piece.rope_length] * len(piece.token_ids) for piece in self._pieces)
        of_tokens = list(itertools.islice(lengths, begin, end))
        return of_tokens + [0] * (end - begin - len(of_tokens))

    def logit_rows(self, begin: int, end: int) -> torch.Tensor:
        """The tokens of rows [begin, end) of logits, in the order of the pieces, and the first behind the last."""
        return self._numbers[begin:end, LOGIT_ROW]

    def rows(self, begin: int, end: int) -> Rows:
        """Where rows [begin, end), a block of the pass, stand and go."""
        tokens = max(0, min(end, self._ends[-1]) - begin)
        by_sequence = functools.cache(functools.partial(self._by_sequence, self._pieces, self._held, begin, end))
        return Rows(self._numbers[begin:end], self._tables, tokens, *self._grids[begin, end], by_sequence)

    def _by_sequence(self, pieces: Sequence[Piece], held: Held, begin: int, end: int) -> list[SequenceRows]:
        """Rows behind the last token belong to a sequence that has ended."""
        sequences, piece_end = [], 0
        for piece in pieces:
            piece_begin, piece_end = piece_end, piece_end + len(piece.token_ids)
            first, last = max(begin, piece_begin), min(end, piece_end)
            if first < last:
                start = piece.start + first - piece_begin
                blocks_B = self._tables[held[piece.sequence][0]]
                ended = functools.partial(_ended, piece)
                prompt_tokens = len(piece.sequence.prompt_ids)
                one = SequenceRows(first - begin, last - begin, start, prompt_tokens, blocks_B, ended)
                sequences.append(one if piece.state_write < 0 else _with_states(one, piece, first - piece_begin))
        if end > piece_end:
            first = max(piece_end, begin)
            sequences.append(SequenceRows(first - begin, end - begin, 0, 0, self._tables[0], lambda: True))
        return sequences

    def _hold_tables(self, pieces: Sequence[Piece]) -> list[Copy]:
        """Give each request of the pass a row for its table; returns what must be sent."""
        blocks = {piece.sequence: piece.sequence.blocks for piece in pieces}
        held = {one: at for one, at in self._held.items() if blocks.get(one) is at[1]}
        taken = {row for row, _ in held.values()}
        free = (row for row in range(len(self._host_tables)) if row not in taken)
        new = [(row, one) for one, row in zip((one for one in blocks if one not in held), free, strict=False)]
        for row, one in new:
            held[one] = row, blocks[one]
            self._host_tables[row, : len(blocks[one])] = blocks[one]
        self._held = held
        stride = self._host_tables.shape[1] * ITEM_BYTES
        return merge_copies(Copy(at, at, stride) for at in (self._numbers_end + row * stride for row, _ in new))

    def _move_on(self, tokens: int, cuts: Sequence[tuple[int, int]]) -> None:
        """Write what is new of a pass with the next token of each answer of the pass before."""
        numbers = self._host_numbers[:tokens]
        numbers[:, POSITION] += 1 + self._moved_on
        numbers[:, BLOCK] = self._host_tables[numbers[:, TABLE], numbers[:, POSITION] // BLOCK_TOKENS]
        self._grids = {cut: _grid_of_answers(self._host_numbers[slice(*cut)]) for cut in cuts}

    def _fill(self, pieces: Sequence[Piece], cuts: Sequence[tuple[int, int]]) -> None:
        """Write the numbers of all rows."""
        rows, tokens = cuts[-1][1], self._ends[-1]
        numbers = self._host_numbers[:rows]
        numbers[:] = NO_TOKEN
        counts = [len(piece.token_ids) for piece in pieces]
        of_pieces = [
            (piece.start + count - end, self._held[piece.sequence][0], len(piece.sequence.prompt_ids), end)
            for piece, count, end in zip(pieces, counts, self._ends, strict=True)
        ]
        indices_T = np.arange(tokens)
        starts_T, tables_T, prompts_T, ends_T = np.repeat(of_pieces, counts, axis=0).T
        positions_T = indices_T + starts_T
        numbers[:tokens, POSITION], numbers[:tokens, TABLE] = positions_T, tables_T
        numbers[:tokens, BLOCK] = self._host_tables[tables_T, positions_T // BLOCK_TOKENS]
        logit_rows = np.concatenate(
            [np.arange(end - one.logit_rows, end) for one, end in zip(pieces, self._ends, strict=True)]
        )
        numbers[: len(logit_rows), LOGIT_ROW] = logit_rows
        prompt_left_T = np.zeros(rows, np.int64)
        prompt_left_T[:tokens] = np.minimum(prompts_T - positions_T, ends_T - indices_T)
        if pieces[0].state_write >= 0:
            self._fill_states(pieces, cuts)
        self._grids = {cut: _cut(numbers[slice(*cut)], prompt_left_T[slice(*cut)]) for cut in cuts}

    def _fill_states(self, pieces: Sequence[Piece], cuts: Sequence[tuple[int, int]]) -> None:
        """Say with which state each run of rows begins and ends: one of a sequence goes on in the next block."""
        counts = [len(piece.token_ids) for piece in pieces]
        numbers, begins = self._host_numbers[: self._ends[-1]], np.subtract(self._ends, counts)
        numbers[:, STATE_WRITE] = np.repeat([piece.state_write for piece in pieces], counts)
        numbers[:, STATE_READ] = numbers[:, STATE_WRITE]
        numbers[begins, STATE_READ] = [piece.state_read for piece in pieces]
        for begin, piece in zip(begins, pieces, strict=True):
            for index, slot in piece.snapshots:
                numbers[begin + index, SNAPSHOT] = slot
        for begin, end in [(begin, min(end, len(numbers))) for begin, end in cuts if begin < len(numbers)]:
            firsts = np.union1d(begin, begins[(begin < begins) & (begins < end)])
            numbers[firsts, RUN] = np.diff(firsts, append=end)
            numbers[begin : begin + len(firsts), RUN_ROW] = firsts - begin


def _cut(numbers: np.ndarray, prompt_left_T: np.ndarray) -> tuple[int, int, int, int]:
    """List the answers and the tiles of a block of rows, of whose prompts so many tokens are left in the pass.

    Returns how many there are of both, and bounds of the parts of an answer and of a tile.
    """
    positions_T = numbers[:, POSITION]
    is_prompt_T = prompt_left_T > 0
    if not is_prompt_T.any():
        numbers[:, ANSWER] = np.arange(len(numbers))
        return _grid_of_answers(numbers)
    answers = np.flatnonzero(~is_prompt_T)
    numbers[: len(answers), ANSWER] = answers
    changes_T = numbers[1:, TABLE] != numbers[:-1, TABLE]
    begins_T = is_prompt_T & ((positions_T % TILE == 0) | np.concatenate([[True], changes_T]))
    tiles = np.flatnonzero(begins_T)
    in_cell = TILE - positions_T[tiles] % TILE
    numbers[: len(tiles), TILE_ROW] = tiles
    numbers[: len(tiles), TILE_TOKENS] = np.minimum.reduce([prompt_left_T[tiles], in_cell, len(numbers) - tiles])
    longest, longest_tile = (int(positions_T[rows].max(initial=-1)) + 1 for rows in (answers, is_prompt_T))
    return len(answers), len(tiles), parts_for(longest), tile_parts_for(longest_tile)


def _grid_of_answers(numbers: np.ndarray, moved_on: int = 0) -> tuple[int, int, int, int]:
    """The same of a block without tiles, in the pass that comes so many later."""
    return len(numbers), 0, parts_for(int(numbers[:, POSITION].max()) + 1 + moved_on), tile_parts_for(0)


def _goes_on(before: Piece, piece: Piece) -> bool:
    """Whether `piece` is the next token of an answer, of which `before` was one, and changes no recurrent state."""
    same = piece.sequence is before.sequence and piece.logit_rows == before.logit_rows and piece.state_write < 0
    is_next = piece.start == before.start + len(before.token_ids) and len(piece.token_ids) == len(before.token_ids) == 1
    return same and is_next and before.start >= len(piece.sequence.prompt_ids)


def _with_states(one: SequenceRows, piece: Piece, done: int) -> SequenceRows:
    """The rows of a piece, of which so many stand in blocks before, with the slots of its recurrent state."""
    rows = range(one.begin, one.end)
    snapshots = [(row, slot) for index, slot in piece.snapshots if (row := one.begin + index - done) in rows]
    state_read = piece.state_write if done else piece.state_read
    return replace(one, state_read=state_read, state_write=piece.state_write, snapshots=snapshots)


def _ended(piece: Piece) -> bool:
    return piece.sequence.ended
