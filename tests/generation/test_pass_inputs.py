"""The numbers of a pass on the device: where each row stands and goes, and which rows are computed together."""

from array import array
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pipeline.devices.cpu import CpuDevice
from pipeline.generation.batching import Piece
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.sequence import RunningSequence
from pipeline.models.pass_rows import FEW_PARTS, MOST_PARTS, PART, TILE

CONTEXT = 4096


def sequence(prompt_tokens: int, first_block: int) -> RunningSequence:
    one = RunningSequence(array("i", [1] * prompt_tokens), SamplingParameters(), frozenset(), None, 8)
    one.blocks = list(range(first_block, first_block + CONTEXT // 16))
    return one


def piece(one: RunningSequence, start: int, tokens: int) -> Piece:
    return Piece(one, start, (1,) * tokens, 1)


async def sent(pieces: Sequence[Piece], cuts: Sequence[tuple[int, int]]) -> PassInputs:
    inputs = PassInputs(CpuDevice(), 1024, 4, CONTEXT)
    await inputs.send(pieces, cuts).wait()
    return inputs


async def test_rows_behind_the_last_token_go_nowhere_and_are_answers() -> None:
    answers = [piece(sequence(5, 1000), 40, 1), piece(sequence(7, 2000), 9, 1)]
    rows = (await sent(answers, [(0, 4)])).rows(0, 4)
    assert (rows.tokens, rows.answers, rows.tiles, rows.parts) == (2, 4, 0, FEW_PARTS)
    assert rows.numbers[:, :4].tolist() == [[40, 1002, 0, 0], [9, 2000, 1, 1], [-1, -1, 0, 2], [-1, -1, 0, 3]]
    assert rows.tables[1, :3].tolist() == [2000, 2001, 2002]


@pytest.mark.parametrize("cuts", [[(0, 320)], [(0, 7), (7, 200), (200, 320)]], ids=str)
async def test_each_token_of_a_prompt_is_in_one_tile_of_its_cell_and_each_other_an_answer(
    cuts: list[tuple[int, int]],
) -> None:
    first, second = sequence(300, 0), sequence(TILE + 20, 1000)
    inputs = await sent([piece(first, 100, 200), piece(second, TILE - 2, 50), piece(sequence(3, 2000), 50, 1)], cuts)
    seen: list[int] = []
    for begin, end in cuts:
        rows = inputs.rows(begin, end)
        lists = rows.numbers[:, 3:6]
        assert (lists[rows.answers :, 0] == -1).all()
        assert (lists[rows.tiles :, 2] == 0).all()
        seen += [begin + row for row in lists[: rows.answers, 0].tolist()]
        for row, tokens in lists[: rows.tiles, 1:].tolist():
            positions, tables = rows.numbers[row : row + tokens, 0], rows.numbers[row : row + tokens, 2]
            assert len(set((positions // TILE).tolist())) == len(set(tables.tolist())) == 1
            assert (positions.diff() == 1).all()
            seen += range(begin + row, begin + row + tokens)
    assert sorted(seen) == list(range(320))
    assert inputs.rows(*cuts[0]).answers == (0 if len(cuts) > 1 else 320 - 200 - 22)


@pytest.mark.parametrize("cuts", [[(0, 16)], [(0, 3), (3, 8), (8, 16)], [(0, 13), (13, 16)]], ids=str)
async def test_a_state_goes_from_row_to_row_and_from_block_to_block(cuts: list[tuple[int, int]]) -> None:
    """Walked as a kernel walks it: what comes out for a row names all rows that it has seen."""
    pieces = [
        Piece(sequence(9, 0), 0, (1,) * 5, 0, 0, -1, 0, ((3, 7), (4, 8))),
        Piece(sequence(9, 1000), 4, (1,), 1, 0, 1, 1),
        Piece(sequence(9, 2000), 2, (1,) * 7, 1, 0, 5, 2, ((1, 6),)),
    ]
    inputs = await sent(pieces, cuts)
    of_rows: dict[int, list[int]] = {1: [-4], 5: [-5]}
    of_sequences = dict(of_rows)
    for begin, end in cuts:
        rows = inputs.rows(begin, end)
        for first in [row for row in rows.numbers[:, 11].tolist() if row >= 0]:
            read, write, run = rows.numbers[first, 7:10].tolist()
            seen = of_rows.get(read, [])
            for row in range(first, first + run):
                seen = [*seen, begin + row]
                of_rows[rows.numbers[row, 10].item()] = seen
            of_rows[write] = seen
        for one in rows.by_sequence():
            seen = of_sequences.get(one.state_read, [])
            states = {row: [*seen, *range(begin + one.begin, begin + row + 1)] for row in range(one.begin, one.end)}
            of_sequences |= {slot: states[row] for row, slot in one.snapshots}
            of_sequences |= {one.state_write: states[one.end - 1]} if one.state_write >= 0 else {}
    of_rows.pop(-1)
    of_2 = [-5, 6, 7, 8, 9, 10, 11, 12]
    want = {0: [0, 1, 2, 3, 4], 7: [0, 1, 2, 3], 8: [0, 1, 2, 3, 4], 1: [-4, 5], 2: of_2, 5: [-5], 6: of_2[:3]}
    assert of_rows == of_sequences == want


async def test_a_request_keeps_its_table_which_is_sent_once() -> None:
    stays, goes, comes = (sequence(5, first) for first in (1000, 2000, 3000))
    inputs = PassInputs(CpuDevice(), 64, 2, CONTEXT)
    await inputs.send([piece(goes, 0, 5), piece(stays, 0, 5)], [(0, 10)]).wait()
    inputs._tables[1] = -7
    await inputs.send([piece(stays, 5, 1), piece(comes, 0, 5)], [(0, 6)]).wait()
    rows = inputs.rows(0, 6)
    assert rows.numbers[:, 2].tolist() == [1, 0, 0, 0, 0, 0]
    assert rows.tables[:, 0].tolist() == [3000, -7]
    stays.blocks = [50] * 256
    await inputs.send([piece(stays, 0, 6)], [(0, 6)]).wait()
    table = inputs.rows(0, 6).numbers[0, 2]
    assert torch.equal(inputs.rows(0, 6).tables[table], torch.full((256,), 50))


@pytest.mark.parametrize(("position", "parts"), [(FEW_PARTS * PART - 1, FEW_PARTS), (FEW_PARTS * PART, MOST_PARTS)])
async def test_the_longest_answer_says_for_how_many_parts_programs_are_launched(position: int, parts: int) -> None:
    inputs = await sent([piece(sequence(1, 0), 9, 1), piece(sequence(2, 1000), position, 1)], [(0, 2)])
    assert inputs.rows(0, 2).parts == parts


async def test_numbers_of_passes_that_go_on_are_those_that_are_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, answers over the end of a block and of few parts, one of them twice, in another order, and alone."""
    filled, fill = [], PassInputs._fill

    def count(self: PassInputs, *arguments: Any) -> None:
        filled.append(self)
        fill(self, *arguments)

    monkeypatch.setattr(PassInputs, "_fill", count)
    first, second = sequence(1, 0), sequence(7, 1000)
    last = FEW_PARTS * PART - 2
    passes = [[piece(first, 0, 1), piece(second, 6, 1)]]
    passes += [[piece(first, position, 1), piece(second, position + 6, 1)] for position in range(1, 30)]
    passes += [passes[-1], passes[-1][::-1], [piece(first, 30, 1)], [piece(first, 31, 1)]]
    passes += [[piece(first, position, 1)] for position in (last, last + 1, last + 2, last + 3)]
    inputs = PassInputs(CpuDevice(), 1024, 4, CONTEXT)
    for pieces in passes:
        await inputs.send(pieces, [(0, 4)]).wait()
        rows, anew = inputs.rows(0, 4), (await sent(pieces, [(0, 4)])).rows(0, 4)
        others = [column for column in range(rows.numbers.shape[1]) if column != 2]
        assert torch.equal(rows.numbers[:, others], anew.numbers[:, others])
        tokens = len(pieces)
        assert torch.equal(rows.tables[rows.numbers[:tokens, 2]], anew.tables[anew.numbers[:tokens, 2]])
        assert (rows.answers, rows.tiles, rows.parts) == (anew.answers, anew.tiles, anew.parts)
    assert filled.count(inputs) == 6, "prompts, their first answers, that pass again, in another order, alone, a jump"
