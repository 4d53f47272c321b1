"""A gate goes by what passes take: with what it lets through, and without."""

import random

import pytest

from pipeline.generation.pass_gate import RESTS, PassGate

TRIED = 4


def passes(gate: PassGate, count: int, *, gone: float, others: float, rows: int = 1) -> list[bool]:
    """What a gate says of so many passes, which take so long."""
    said = []
    for _ in range(count):
        said.append(gate.opens(rows))
        gate.took(gone if said[-1] else others)
    return said


@pytest.mark.parametrize("in_a_row", [1, 2])
@pytest.mark.parametrize("pays", [True, False])
def test_a_gate_goes_by_what_passes_take(pays: bool, in_a_row: int) -> None:
    gate, seconds = PassGate(TRIED, in_a_row), {"gone": 1.0 if pays else 1.1, "others": 1.1 if pays else 1.0}
    tried = passes(gate, 2 * TRIED, **seconds)
    assert tried == ([True] * in_a_row + [False] * in_a_row) * (TRIED // in_a_row)
    assert passes(gate, RESTS, **seconds) == [pays] * RESTS
    assert passes(gate, 2 * TRIED, gone=1.0, others=2.0) == tried, "then it tries again"
    assert all(passes(gate, RESTS, gone=1.0, others=2.0))


def test_a_gate_compares_passes_of_about_as_many_rows() -> None:
    gate = PassGate(TRIED, 1)
    passes(gate, 2 * TRIED, gone=1.0, others=2.0, rows=1)
    assert not all(passes(gate, 2 * TRIED, gone=30.0, others=20.0, rows=16))
    assert passes(gate, 3, gone=1.0, others=2.0, rows=1) == [True] * 3
    assert passes(gate, 3, gone=30.0, others=20.0, rows=19) == [False] * 3


def test_a_pass_that_is_left_tells_a_gate_nothing() -> None:
    gate = PassGate(TRIED, 1)
    for _ in range(3 * TRIED):
        assert gate.opens(1)
    gate.took(1.0)
    gate.took(5.0)
    assert not gate.opens(1)


def test_a_pass_behind_one_that_was_left_is_not_taken_for_it() -> None:
    gate = PassGate(TRIED, 1)
    passes(gate, 2 * TRIED, gone=1.0, others=2.0, rows=16)
    assert gate.opens(1)
    assert gate.opens(16)
    gate.took(1.0)
    assert gate.opens(1), "none was timed yet"


@pytest.mark.parametrize("costs", [0.05, -0.05])
def test_what_passes_had_read_is_not_what_a_gate_goes_by(costs: float) -> None:
    """Reads take most of the time, and differ from pass to pass by more than what is looked for."""
    drawn = random.Random(0)
    for _ in range(20):
        gate = PassGate(16, 2)
        for _ in range(32):
            reads = drawn.randrange(40)
            gate.took((costs if gate.opens(1) else 0.0) + 0.1 * reads + drawn.gauss(1.0, 0.02), reads)
        assert gate.opens(1) is (costs < 0)
