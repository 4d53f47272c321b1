"""Which experts the CPU computes: those with which a layer ends earlier, both ways being queues."""

import itertools
from dataclasses import replace
from random import Random

import pytest

from pipeline.generation.expert_split import RESTS, TRIED, Missed, SplitGate, SplitRates, split

RATES = SplitRates(
    upload_seconds=1.0, read_seconds=3.0, product_seconds={1: 0.3, 2: 0.3, 4: 0.5, 16: 2.0}, rows_seconds=0.2
)


def ends(missed: list[Missed], on_cpu: set[int], rates: SplitRates) -> float:
    """When the last of a layer has ended, if these are computed by the CPU."""
    cpu, link, disk = rates.rows_seconds, 0.0, 0.0
    for one in sorted(missed, key=lambda one: one.is_read):
        disk += rates.read_seconds * one.is_read
        if one.index in on_cpu:
            cpu = max(cpu, disk) + rates.on_cpu(one.rows)
        else:
            link = max(link, disk) + rates.upload_seconds
    return max(link, cpu if on_cpu else 0.0)


def test_one_row_goes_to_the_cpu_and_many_rows_to_the_link() -> None:
    assert split([Missed(5, 1)], RATES) == {5}
    assert split([Missed(5, 16)], RATES) == set()
    assert split([Missed(1, 16), Missed(2, 1), Missed(3, 14)], RATES) == {2}
    assert split([], RATES) == set()


def test_both_ways_work_at_once() -> None:
    """Of eight the CPU has computed six when the link has brought two."""
    assert len(split([Missed(index, 1) for index in range(8)], RATES)) == 6
    slower = replace(RATES, upload_seconds=0.1)
    assert len(split([Missed(index, 1) for index in range(8)], slower)) == 1
    assert split([Missed(index, 1) for index in range(4)], slower) == set()


def test_what_ends_as_early_on_the_device_is_copied() -> None:
    rates = replace(RATES, product_seconds={1: 1.0}, rows_seconds=0.0)
    assert split([Missed(0, 1)], rates) == set()
    assert split([Missed(0, 1, is_read=True)], rates) == set()


def test_what_is_read_last_goes_where_it_ends_earlier() -> None:
    read = [Missed(index, 1, is_read=True) for index in range(3)]
    assert split(read, RATES) == {0, 1, 2}
    assert split(read, replace(RATES, product_seconds={1: 1.5})) == set()
    # While the first is copied, the CPU multiplies by the second.
    assert split(read, replace(RATES, read_seconds=0.1, product_seconds={1: 1.0})) == {1}


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_among_those_in_host_memory_ends_earlier(seed: int) -> None:
    random = Random(seed)
    rates = SplitRates(
        upload_seconds=random.choice([0.2, 1.0, 3.0]),
        read_seconds=1.0,
        product_seconds={1: 0.4, 4: random.choice([0.4, 1.0]), 16: 2.0},
        rows_seconds=random.choice([0.0, 0.5]),
    )
    missed = [Missed(index, random.choice([1, 1, 2, 5, 16])) for index in range(random.randint(1, 7))]
    every = range(len(missed) + 1)
    choices = itertools.chain.from_iterable(itertools.combinations(range(len(missed)), count) for count in every)
    best = min(ends(missed, {*one}, rates) for one in choices)
    assert ends(missed, split(missed, rates), rates) == pytest.approx(best)


def test_products_between_those_that_were_timed_and_beyond() -> None:
    assert [RATES.on_cpu(rows) for rows in (1, 3, 4, 10, 28)] == pytest.approx([0.3, 0.4, 0.5, 1.25, 3.5])
    assert replace(RATES, product_seconds={1: 0.3}).on_cpu(5) == 0.3


def passes(gate: SplitGate, count: int, *, split_up: float, without: float, rows: int = 1) -> list[bool]:
    """What a gate says of so many passes, which take so long."""
    said = []
    for _ in range(count):
        said.append(gate.opens(rows))
        gate.took(split_up if said[-1] else without)
    return said


@pytest.mark.parametrize("pays", [True, False])
def test_a_gate_goes_by_what_passes_take(pays: bool) -> None:
    gate, seconds = SplitGate(), {"split_up": 1.0 if pays else 1.1, "without": 1.1 if pays else 1.0}
    tried = passes(gate, 2 * TRIED, **seconds)
    assert tried == [True, False] * TRIED
    assert passes(gate, RESTS, **seconds) == [pays] * RESTS
    assert passes(gate, 2 * TRIED, split_up=1.0, without=2.0) == tried, "then it tries again"
    assert all(passes(gate, RESTS, split_up=1.0, without=2.0))


def test_a_gate_compares_passes_of_about_as_many_rows() -> None:
    gate = SplitGate()
    passes(gate, 2 * TRIED, split_up=1.0, without=2.0, rows=1)
    assert not all(passes(gate, 2 * TRIED, split_up=30.0, without=20.0, rows=16))
    assert passes(gate, 3, split_up=1.0, without=2.0, rows=1) == [True] * 3
    assert passes(gate, 3, split_up=30.0, without=20.0, rows=19) == [False] * 3


def test_a_pass_that_is_left_tells_a_gate_nothing() -> None:
    gate = SplitGate()
    for _ in range(3 * TRIED):
        assert gate.opens(1)
    gate.took(1.0)
    gate.took(5.0)
    assert not gate.opens(1)


def test_what_a_call_takes_counts_once_for_a_layer() -> None:
    dear = replace(RATES, rows_seconds=2.0)
    assert split([Missed(0, 1), Missed(1, 1)], dear) == set()
    assert len(split([Missed(index, 1) for index in range(8)], dear)) == 5
