"""Entries of windows that are made token by token, against the softmax written out, wherever the tokens are cut."""

import itertools
import random

import pytest
import torch

from pipeline.models.compressed import Compressor
from pipeline.models.compressor import CompressedRows
from pipeline.models.pass_rows import SequenceRows
from pipeline.models.state_part import part_views

POSITIONS, TOKENS, CHANNELS = 16, 150, 6
BLOCKS = torch.tensor([4, 0, 9, 7, 1, 8, 2, 6, 5, 3])


def expected(kind: Compressor, values: torch.Tensor, gates: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The mean of each window, with overlap together with other channels of the one before."""
    means = []
    for first in range(0, TOKENS - kind.rate + 1, kind.rate):
        own = slice(first, first + kind.rate)
        value, gate = values[own, -CHANNELS:], gates[own, -CHANNELS:] + bias[:, -CHANNELS:]
        if kind.overlap and first:
            before = slice(first - kind.rate, first)
            value = torch.cat((values[before, :CHANNELS], value))
            gate = torch.cat((gates[before, :CHANNELS] + bias[:, :CHANNELS], gate))
        means.append((gate.softmax(0) * value).sum(0))
    return torch.stack(means)


@pytest.mark.parametrize(("rate", "overlap"), [(4, True), (16, True), (2, False), (32, False), (48, True)])
def test_entries_are_those_of_whole_windows_wherever_tokens_are_cut(rate: int, overlap: bool) -> None:
    kind, drawn = Compressor(rate=rate, channels=CHANNELS, overlap=overlap), random.Random(rate)
    torch.manual_seed(rate)
    values, gates, bias = (torch.randn(rows, kind.projected) * 3 for rows in (TOKENS, TOKENS, rate))
    parts = kind.parts(POSITIONS, torch.float32)
    made = []
    for cuts in ([0, TOKENS], range(TOKENS + 1), [0, *sorted(drawn.sample(range(1, TOKENS), 9)), TOKENS]):
        memory = torch.full((len(BLOCKS), sum(part.nbytes for part in parts)), 255, dtype=torch.uint8)  # no numbers
        kept = CompressedRows(kind, POSITIONS, *part_views(parts, memory))
        for start, end in itertools.pairwise(cuts):
            one = SequenceRows(2, 2 + end - start, start, TOKENS, BLOCKS)  # behind two rows of another sequence
            rows = [torch.cat((torch.zeros(2, kind.projected), some[start:end])) for some in (values, gates)]
            kept.add(*rows, bias, one, lambda means, positions: means + 0 * positions.unsqueeze(1))
        count = TOKENS // rate
        made.append((kept.read(BLOCKS, count, count + 2), kept.running[BLOCKS[: TOKENS // POSITIONS]]))
    entries, _ = made[0]
    torch.testing.assert_close(entries[:-2], expected(kind, values, gates, bias), atol=1e-5, rtol=1e-5)
    assert not entries[-2:].any()
    for others in made[1:]:
        assert all(map(torch.equal, others, made[0]))


@pytest.mark.parametrize(("rate", "overlap"), [(4, True), (2, False), (32, False)])
def test_a_token_of_each_of_several_sequences_has_the_bits_that_it_has_alone(rate: int, overlap: bool) -> None:
    kind, begins, steps = Compressor(rate=rate, channels=CHANNELS, overlap=overlap), (1, 7, 14), 33
    torch.manual_seed(rate)
    values, gates, bias = (torch.randn(*rows, kind.projected) * 3 for rows in ((3, 64), (3, 64), (rate,)))
    blocks, parts = BLOCKS[:9].view(3, 3), kind.parts(POSITIONS, torch.float32)
    kept = []
    for _ in range(2):
        memory = torch.zeros(len(BLOCKS), sum(part.nbytes for part in parts), dtype=torch.uint8)
        kept.append(CompressedRows(kind, POSITIONS, *part_views(parts, memory)))

    def finish(means: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return means + positions.unsqueeze(1)

    for one in kept:
        for index, tokens in enumerate(begins):
            prompt = SequenceRows(0, tokens, 0, tokens, blocks[index])
            one.add(values[index, :tokens], gates[index, :tokens], bias, prompt, finish)
    for step in range(steps):
        at = [tokens + step for tokens in begins]
        rows = [torch.stack([some[index, at[index]] for index in (1, 0, 2)]) for some in (values, gates)]
        each = [SequenceRows(row, row + 1, at[index], 0, blocks[index]) for row, index in enumerate((1, 0, 2))]
        order = each if step % 2 else each[::-1]  # rows may lie in any order, and in one run or not
        kept[0].add_answers(*rows, bias, order, finish)
        for one in each:
            kept[1].add(*rows, bias, one, finish)
        assert torch.equal(kept[0].running, kept[1].running)
        assert torch.equal(kept[0].entries, kept[1].entries)
    assert kept[0].entries.any()
