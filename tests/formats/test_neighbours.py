"""Encoded matrices that lie one behind the other are one, with the rows of each; others are not."""

from collections.abc import Sequence

import torch

from pipeline.formats.encoded import Encoded
from pipeline.formats.neighbours import joined, runs

COLUMNS, GROUP = 256, 128


def three(rows: Sequence[int], gap: int = 0, *, zeroed: bool = False) -> list[Encoded]:
    """Matrices whose numbers lie together, and their scales (zeros) too, so many bytes apart, in one memory."""
    shapes = [(count, COLUMNS // 8) for count in rows], [(count, COLUMNS // GROUP) for count in rows]
    kinds = (shapes[0], torch.int32), (shapes[1], torch.bfloat16), *[(shapes[1], torch.int8)] * zeroed
    memory = torch.randint(0, 100, (1 << 21,), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    end, parts = 0, []
    for sizes, dtype in kinds:
        parts.append([])
        for shape in sizes:
            length = shape[0] * shape[1] * dtype.itemsize
            parts[-1].append(memory[end : end + length].view(dtype).view(shape))
            end += length + gap
    zeros = parts[2] if zeroed else [8] * len(rows)
    return [
        Encoded("int4", (count, COLUMNS), numbers, scales, GROUP, torch.bfloat16, zeros=zero)
        for count, numbers, scales, zero in zip(rows, parts[0], parts[1], zeros, strict=True)
    ]


def test_neighbours_are_one_matrix_with_the_rows_of_each() -> None:
    for zeroed in (False, True):
        q, k, v = three((128, 64, 24), zeroed=zeroed)
        one = joined([q, k, v])
        assert one.shape == (216, COLUMNS)
        for name in ("numbers", "scales", "zeros")[: 2 + zeroed]:
            assert torch.equal(getattr(one, name), torch.cat([getattr(each, name) for each in (q, k, v)]))


def test_matrices_are_multiplied_together_in_the_order_in_which_they_lie() -> None:
    k, q, v = three((64, 128, 64))
    assert runs([q, k, v], [None] * 3) == [[1, 0, 2]]
    biases = torch.ones(256).split((64, 128, 64))
    assert runs([q, k, v], [biases[1], biases[0], biases[2]]) == [[1, 0, 2]]
    assert runs([q, k, v], [biases[0], biases[1], biases[2]]) == [[1], [0], [2]], "biases lie in another order"
    assert runs([q, k, v], [None, None, biases[2]]) == [[1, 0], [2]]


def test_matrices_are_multiplied_apart_where_something_lies_between_or_differs() -> None:
    assert runs(three((64, 64, 64), gap=64), [None] * 3) == [[0], [1], [2]]
    assert runs(three((64, 40, 64)), [None] * 3) == [[0, 1], [2]], "a program would have rows of two"
    assert runs(three((8192, 64)), [None] * 2) == [[0], [1]], "their columns are shared out in other ways"
    alike = three((64, 64))
    elsewhere = three((64, 64))
    assert len(runs([alike[0], elsewhere[1]], [None] * 2)) == 2
