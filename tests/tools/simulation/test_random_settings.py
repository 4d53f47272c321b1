"""Random settings, a thousand where everything is tested: none hangs, rules 1 to 3 hold, nothing beats backpressure."""

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import pytest
from support.cases import EVERYTHING

from actors.core.trace import Span
from pipeline.engine.policies import POLICIES
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.bench.steady_timings import SteadyTimings
from pipeline.tools.simulation.sim_line import Simulated, simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

BLOCKS, BLOCK = (20, 50) if EVERYTHING else (2, 30)
HEADS = 25 if EVERYTHING else 4
ROUNDING_SECONDS = 1e-8


@dataclass(frozen=True, kw_only=True)
class Setting:
    timings: LayerTimings | SteadyTimings
    passes: int
    gpu_groups: int
    host_groups: int
    queue: int
    micro_batches: int


def random_setting(seed: int) -> Setting:
    """Layers from 1 to 40, but mostly few: what goes wrong goes wrong at the ends of a pass."""
    random = Random(seed)
    seconds = [random.uniform(0.01, 0.2) for _ in range(7)]
    disk = random.choice([0, 1])
    timings = LayerTimings(
        layers=max(1, min(40, round(random.expovariate(1 / 6)))),
        attn=seconds[0],
        ffn=seconds[1],
        attn_io=seconds[2],
        ffn_io=seconds[3],
        attn_disk=seconds[4] * disk,
        ffn_disk=seconds[5] * disk,
        kv_seconds=random.choice([0, 0, seconds[6]]),
        check_seconds=random.choice([0, 0.005]),
        jitter=random.choice([0, 0, 0.1, 0.3, 1.0]),
        seed=seed,
    )
    return Setting(
        timings=timings,
        passes=random.choice([1, 2]),
        gpu_groups=random.randint(1, 12),
        host_groups=random.randint(1, 12),
        queue=random.randint(1, 4),
        micro_batches=random.choice([1, 1, 2, 3]),
    )


def with_head(setting: Setting, slices: int) -> Setting:
    """The same layers, all alike, and behind them slices of a head, in turn as large as an attn and an ffn."""
    timings = setting.timings
    assert isinstance(timings, LayerTimings)
    alike = replace(timings, jitter=0.0)
    order = (*timings.order, *((timings.layers, f"head.{index}") for index in range(slices)))
    halves = SlotKinds.by_order(order).of
    steady = SteadyTimings(
        order=order,
        one_link=timings.one_link,
        begin=0.0,
        reads={key: alike.seconds(DISK, 0, (0, half)) for key, half in halves.items()},
        uploads={key: alike.seconds(LINK, 0, (0, half)) for key, half in halves.items()},
        computes={
            key: alike.seconds(COMPUTE, 0, (0, half)) / (1 + 9 * (half != key[1])) for key, half in halves.items()
        },
        check_seconds=timings.check_seconds,
        kv_seconds=timings.kv_seconds,
    )
    return replace(setting, timings=steady)


def run(setting: Setting, name: str) -> Simulated:
    return simulate(
        setting.timings,
        replace(POLICIES[name], micro_batches=setting.micro_batches),
        passes=setting.passes,
        gpu_groups=setting.gpu_groups,
        host_groups=setting.host_groups,
        queue=setting.queue,
    )


def work_of(run: Simulated, actor: str) -> list[Span]:
    return [span for span in run.trace.spans if span.actor == actor and span.what == "work"]


def total_seconds(run: Simulated) -> float:
    return max(span.ended for span in work_of(run, "compute_scheduler"))


def check_order(run: Simulated, setting: Setting) -> None:
    """Rule 1: every group once per pass, moved in plan order, computed in compute order once its bytes are there."""
    groups = len(run.order) * setting.passes
    reads, uploads = work_of(run, "disk_reader"), work_of(run, "gpu_uploader")
    landed = {span.seq: span.ended for span in uploads or reads}
    assert [span.seq for span in reads] == list(range(groups))
    assert [span.seq for span in uploads] == ([] if setting.timings.one_link else list(range(groups)))
    for part in range(setting.micro_batches):
        computed = [span for span in work_of(run, "compute_scheduler") if span.part == part]
        assert [(span.layer, span.group) for span in computed] == list(run.order) * setting.passes
        assert all(before.ended <= after.started + ROUNDING_SECONDS for before, after in pairwise(computed))
        assert all(landed[span.seq] <= span.started + ROUNDING_SECONDS for span in computed)


def check_budgets(run: Simulated, setting: Setting) -> None:
    """Rule 2: no more slots than there are, by the budgets' own count."""
    capacities = {"slots host": setting.host_groups, "slots device": setting.gpu_groups}
    if setting.timings.one_link:
        capacities = {"slots host": setting.gpu_groups}
    peaks: defaultdict[str, int] = defaultdict(int)
    for count in run.trace.counts:
        peaks[count.counter] = max(peaks[count.counter], count.value)
    for counter, capacity in capacities.items():
        assert 0 < peaks[counter] <= capacity, counter


def check_slots(run: Simulated, setting: Setting) -> None:
    """Rules 2 and 3, by spans: each slot is filled, used and filled again, so it holds one group at a time.

    A host slot is used until its upload has ended, a device slot until its last micro-batch was computed.
    """
    reads, uploads = work_of(run, "disk_reader"), work_of(run, "gpu_uploader")
    computed = {span.seq: span for span in work_of(run, "compute_scheduler")}  # the last part stays
    hops = [(reads, computed)]
    if not setting.timings.one_link:
        hops = [(reads, {span.seq: span for span in uploads}), (uploads, computed)]
    for fills, users in hops:
        capacity = setting.host_groups if fills is reads and not setting.timings.one_link else setting.gpu_groups
        by_slot: defaultdict[int, list[Span]] = defaultdict(list)
        for fill in fills:
            by_slot[fill.slot].append(fill)
        assert set(by_slot) <= set(range(capacity))
        for uses in by_slot.values():
            for before, after in pairwise(uses):
                assert users[before.seq].ended <= after.started + ROUNDING_SECONDS
    assert all(computed[fill.seq].slot == fill.slot for fill in hops[-1][0])


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_deadlock_rules_one_to_three_and_nothing_beats_backpressure(
    block: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Every policy gets the same micro-batches: they are worth more than any order of transfers."""
    caplog.set_level(logging.ERROR, "penstock")  # small budgets clip, and say so each time
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        setting = random_setting(seed)
        seconds = {}
        for name in POLICIES:
            simulated = run(setting, name)
            check_order(simulated, setting)
            check_budgets(simulated, setting)
            check_slots(simulated, setting)
            seconds[name] = total_seconds(simulated)
        # Behind a disk KV blocks share the H2D lane with the weights, and over a few layers their order counts.
        shared = setting.timings.kv_seconds and not setting.timings.one_link
        for name, others in seconds.items():
            assert seconds["backpressure"] <= others * (1.02 if shared else 1.005), (seed, name, setting)


@pytest.mark.parametrize("slices", [1, 2, 3, 6])
def test_a_head_gets_through_in_any_number_of_slices(slices: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "penstock")
    for seed in range(slices * BLOCK, slices * BLOCK + HEADS):
        setting = with_head(random_setting(seed), slices)
        for name in POLICIES:
            simulated = run(setting, name)
            check_order(simulated, setting)
            check_budgets(simulated, setting)
            check_slots(simulated, setting)


def test_small_budgets_come_in_both_kinds() -> None:
    """The random budgets reach the cases that differ: one slot for everything, one of each kind, several."""
    settings = [random_setting(seed) for seed in range(BLOCKS * BLOCK)]
    kinds = {tuple(SlotKinds(("attn", "ffn"), {}).counts(setting.gpu_groups).values()) for setting in settings}
    assert {(0, 1), (1, 1), (1, 2), (6, 6)} <= kinds


def test_where_another_order_can_win() -> None:
    """The limit of the claim: with two hops, a pass of a few layers may start or end better in another order.

    Two links in a row are a flow shop, whose first and last jobs make the difference; no layer in between does. Found
    in about one of a thousand random settings, all of one pass over at most 7 layers, and none with a single hop.
    """
    timings = LayerTimings(
        layers=3, attn=0.149, ffn=0.046, attn_io=0.148, ffn_io=0.083, attn_disk=0.19, ffn_disk=0.165, kv_seconds=0.027
    )
    setting = Setting(timings=timings, passes=1, gpu_groups=7, host_groups=4, queue=4, micro_batches=3)
    excess = {}
    for layers in (3, 12):
        longer = replace(setting, timings=replace(timings, layers=layers))
        excess[layers] = total_seconds(run(longer, "backpressure")) / total_seconds(run(longer, "stage2")) - 1
    assert 0.01 < excess[3] < 0.02
    assert excess[12] < 0.005
