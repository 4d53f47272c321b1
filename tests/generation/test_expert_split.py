"""Which experts the CPU computes: those with which a layer ends earlier, both ways being queues."""

import itertools
from dataclasses import replace
from random import Random

import pytest

from pipeline.generation.expert_split import Missed, SplitRates, split

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


def test_what_a_call_takes_counts_once_for_a_layer() -> None:
    dear = replace(RATES, rows_seconds=2.0)
    assert split([Missed(0, 1), Missed(1, 1)], dear) == set()
    assert len(split([Missed(index, 1) for index in range(8)], dear)) == 5
