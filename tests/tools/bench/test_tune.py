"""`penstock tune`: its rules with made-up numbers, its simulations, and its sweeps of the disk."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_checkpoints import write_small_checkpoint

import pipeline.generation.build
from actors.core.trace import Span
from pipeline.config import Config
from pipeline.errors import CheckpointError
from pipeline.reading.reading import Reading
from pipeline.tools.bench import read_rates
from pipeline.tools.bench.candidates import (
    DEFAULT,
    DEFAULT_READING,
    Candidate,
    ReadSizes,
    Samples,
    best_readings,
    candidates,
    choose,
    choose_sizes,
    shortlist,
)
from pipeline.tools.bench.steady_timings import SteadyTimings, simulated_grid, steady_seconds
from pipeline.tools.bench.tune import QUEUES
from pipeline.tools.simulation.replay import Replay
from pipeline.tools.trace.recording import COMPUTE, DISK

ORDER = tuple((layer, group) for layer in range(6) for group in ("attn", "ffn"))
FASTER = ReadSizes(8, 4 << 20)
seconds = st.floats(0.001, 1000.0)


def one(gpu_groups: int, queue: int = 1, host_groups: int = 4) -> Candidate:
    return Candidate(gpu_groups=gpu_groups, host_groups=host_groups, queue=queue, reading=DEFAULT_READING)


def timings(attn: float, ffn: float, reads: float, begin: float = 0.0, upload: float = 0.0) -> SteadyTimings:
    return SteadyTimings(
        order=ORDER,
        one_link=not upload,
        begin=begin,
        reads=dict.fromkeys(ORDER, reads),
        uploads=dict.fromkeys(ORDER, upload),
        computes={key: attn if key[1] == "attn" else ffn for key in ORDER},
    )


async def simulated(timed: SteadyTimings, budgets: list[tuple[int, int]]) -> dict[Candidate, float]:
    return await asyncio.to_thread(simulated_grid, timed, candidates(budgets, (1, 4), DEFAULT_READING))


def test_samples_have_a_median_and_half_of_the_middle_half() -> None:
    assert Samples((2.0,)).spread == 0.0
    samples = Samples((1.0, 4.0, 2.0, 3.0, 900.0))
    assert (samples.median, samples.spread) == (3.0, pytest.approx(1 / 3))


def test_the_default_is_what_config_says() -> None:
    queues = dict.fromkeys(DEFAULT.settings["queues"], 4)
    reading = {"reader_lanes": Reading().lanes, "chunk_bytes": Reading().chunk_bytes}
    assert Config(**DEFAULT.settings) == Config(gpu_groups=4, queues=queues, residency=False, **reading)
    assert DEFAULT_READING in read_rates.READINGS


def test_the_default_reading_stays_unless_another_is_faster_by_more_than_the_noise() -> None:
    noisy = {DEFAULT_READING: Samples((2.8, 3.0, 3.2)), FASTER: Samples((3.1, 3.2, 3.3))}
    assert choose_sizes(noisy) == FASTER  # 7 % faster; the spreads are 3.3 and 1.6 %
    noisy[FASTER] = Samples((2.9, 3.1, 3.3))
    assert choose_sizes(noisy) == DEFAULT_READING
    assert choose_sizes({DEFAULT_READING: Samples((3.0,)), FASTER: Samples((3.02,))}) == DEFAULT_READING


def test_each_number_of_lanes_reads_in_its_fastest_way_and_the_chosen_in_its_own() -> None:
    chosen, larger = DEFAULT_READING, ReadSizes(DEFAULT_READING.reader_lanes, 4 * DEFAULT_READING.chunk_bytes)
    rates = {FASTER: Samples((3.0,)), ReadSizes(8, 8 << 20): Samples((2.0,)), chosen: Samples((3.0,))}
    assert best_readings(rates | {larger: Samples((3.001,))}) == [chosen, FASTER]
    assert best_readings(rates | {larger: Samples((4.0,))}) == [larger, FASTER]


def test_the_shortlist_prefers_little_memory_where_times_are_alike() -> None:
    times = {
        one(1): 2.0,
        one(2): 1.05,
        one(3, queue=2): 1.0, one(3, queue=1): 1.2,
        one(4, queue=1): 1.005, one(4, queue=2): 1.0,
        one(5, host_groups=5): 1.0, one(5): 1.0,
    }  # fmt: skip
    assert shortlist(times, 5) == [one(3, queue=2), one(4), one(5), one(2), one(1)]
    assert shortlist(times) == [one(3, queue=2), one(4), one(5)]


@given(st.dictionaries(st.builds(one, st.integers(1, 6), st.sampled_from(QUEUES)), seconds, min_size=1))
def test_the_shortlist_holds_one_of_each_budget_and_something_as_good_as_the_best(
    times: dict[Candidate, float],
) -> None:
    few = shortlist(times)
    assert len(few) == min(3, len({candidate.gpu_groups for candidate in times}))
    assert len({candidate.gpu_groups for candidate in few}) == len(few)
    assert times[few[0]] <= min(times.values()) * 1.01


def test_the_smallest_budget_within_the_spread_is_chosen() -> None:
    measured = {one(4): Samples((1.0, 1.0)), one(3): Samples((1.009,)), one(2): Samples((1.05,))}
    assert choose(measured) == one(3)
    measured[one(2)] = Samples((0.5, 1.05, 9.0))
    assert choose(measured) == one(3), "that a setting is erratic does not speak for it"
    measured[one(4)] = Samples((0.88, 1.0, 1.12))  # 1.0 ± 6 %
    assert choose(measured) == one(2)


@given(st.dictionaries(st.builds(one, st.integers(1, 6), st.sampled_from(QUEUES)), seconds, min_size=1))
def test_without_spread_nothing_smaller_is_within_a_percent(times: dict[Candidate, float]) -> None:
    chosen = choose({candidate: Samples((time,)) for candidate, time in times.items()})
    fastest = min(times.values())
    assert times[chosen] <= fastest * 1.01
    assert not [other for other in times if other.need < chosen.need and times[other] <= fastest * 1.01]


def replayed() -> tuple[list[Span], SteadyTimings]:
    """Four passes of 10 s, each: attn read 1 s beside an ffn read of 3 s; computed in 1 and 2 s; the second slower."""
    spans = []
    for pass_ in range(4):
        at, slow = 10.0 * pass_, 2.0 if pass_ == 1 else 1.0
        attn, ffn = (0, "attn", 2 * pass_), (0, "ffn", 2 * pass_ + 1)
        spans += [
            Span(DISK, "work", *attn, at, at + 3),
            Span(DISK, "work", *ffn, at, at + 4),
            Span(COMPUTE, "request", *attn, at - 1, at + 1),
            Span(COMPUTE, "work", *attn, at + 4, at + 4 + slow),
            Span(COMPUTE, "work", *ffn, at + 6, at + 8),
        ]
    order = ((0, "attn"), (0, "ffn"))
    replay = Replay.of(spans, order, one_link=True, check_seconds=0.0)
    return spans, SteadyTimings.of(replay, range(4), {order[0]: 100, order[1]: 300})


def test_recorded_reading_is_shared_out_by_bytes_and_all_sums_are_medians() -> None:
    spans, timed = replayed()
    assert timed.reads == {(0, "attn"): 1.0, (0, "ffn"): 3.0}
    assert timed.computes == {(0, "attn"): 1.0, (0, "ffn"): 2.0}
    assert timed.resources == {"disk": 4.0, "compute": 3.0}
    assert timed.with_reads(1.5).resources == {"disk": 6.0, "compute": 3.0}
    assert timed.resources["disk"] == 4.0
    assert steady_seconds(spans, timed.order) == [10.0, 10.0]


async def test_two_slots_of_one_layer_serialise_and_three_reach_the_ideal() -> None:
    """Near balance: 1 is worst, and beyond a few groups more of them buy nothing."""
    times = await simulated(timings(attn=0.8, ffn=1.2, reads=1.0), [(groups, 4) for groups in range(1, 8)])
    by_budget = [times[one(groups)] for groups in range(1, 8)]
    assert by_budget[0] == pytest.approx(24.0)  # every group is read, then computed
    assert by_budget[1] < by_budget[0]
    assert by_budget == sorted(by_budget, reverse=True)
    assert by_budget[3:] == pytest.approx([12.0] * 4, rel=0.002)
    assert all(times[one(groups, 4)] == pytest.approx(times[one(groups)]) for groups in range(1, 8))


@settings(max_examples=25)
@given(
    attn=st.floats(0.1, 2.0),
    ffn=st.floats(0.1, 2.0),
    reads=st.floats(0.1, 2.0),
    begin=st.floats(0.0, 2.0),
    upload=st.sampled_from([0.0, 0.5, 1.5]),
)
def test_a_pass_takes_at_least_as_long_as_its_busiest_resource(
    attn: float, ffn: float, reads: float, begin: float, upload: float
) -> None:
    timed = timings(attn, ffn, reads, begin, upload)
    tried = candidates([(1, 4), (4, 4), (8, 4), (8, 8)], (1, 8), DEFAULT_READING)
    times = simulated_grid(timed, tried)
    assert min(times.values()) >= max(timed.resources.values()) * 0.999
    assert max(times.values()) <= sum(timed.resources.values()) + begin + 1e-6
    assert times[tried[-1]] <= times[tried[0]] * 1.001


@pytest.fixture
def _short_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_rates, "ROUNDS", 2)
    monkeypatch.setattr(read_rates, "SWEEP_SECONDS", 0.01)


@pytest.mark.usefixtures("everything_moves")
@pytest.mark.usefixtures("_short_sweeps")
async def test_a_file_that_shrank_fails_the_sweep_as_one_error(tmp_path: Path) -> None:
    folder = tmp_path / "shrinks"
    write_small_checkpoint(folder, "llama-3-8b")
    runtime = await asyncio.to_thread(pipeline.generation.build.build, folder, Config(device="cpu"))

    def shrink(text: str) -> None:
        if "round 2" in text:
            for file in folder.glob("*.safetensors"):
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    try:
        with pytest.raises(CheckpointError, match="safetensors"):
            await read_rates.read_rates(runtime, shrink)
    finally:
        await runtime.aclose()
