"""The production actors with resident groups, on virtual time: what a pass takes, and why groups are spread."""

import itertools

import pytest
from support.cases import EVERYTHING
from support.small_lines import layer_timings

from pipeline.engine.policies import POLICIES
from pipeline.engine.residency import Residency, spread
from pipeline.tools.bench.steady_timings import steady_seconds
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings

LAYERS = 40
ATTN_MS, FFN_MS = 10.0, 46.7


def timings(compute_share: float, disk: float = 0.0) -> LayerTimings:
    """Groups that differ as those of Llama-3-70B; computing takes so much of what moving does."""
    return LayerTimings(
        layers=LAYERS,
        attn=compute_share * ATTN_MS / 1000,
        ffn=compute_share * FFN_MS / 1000,
        attn_io=ATTN_MS / 1000,
        ffn_io=FFN_MS / 1000,
        attn_disk=disk * ATTN_MS / 1000,
        ffn_disk=disk * FFN_MS / 1000,
    )


def sizes() -> dict[tuple[int, str], int]:
    return {
        (layer, group): size
        for layer in range(LAYERS)
        for group, size in (("attn", round(ATTN_MS * 10)), ("ffn", round(FFN_MS * 10)))
    }


def pass_seconds(timings: LayerTimings, residency: Residency, policy: str = "backpressure") -> float:
    run = simulate(timings, POLICIES[policy], passes=6, gpu_groups=4, residency=residency)
    steady = steady_seconds(run.trace.spans, timings.order)
    return sum(steady[1:]) / len(steady[1:])


@pytest.mark.parametrize(("share", "compute_share"), [(0.25, 0.3), (0.5, 0.5), (0.5, 0.9), (0.75, 0.2), (0.9, 0.5)])
def test_what_stays_costs_nothing_and_the_rest_moves_at_the_links_pace(share: float, compute_share: float) -> None:
    stays = spread(sizes(), int(share * sum(sizes().values())))
    io = sum(size for group, size in sizes().items() if group not in stays) / 10_000
    compute = compute_share * sum(sizes().values()) / 10_000
    seconds = pass_seconds(timings(compute_share), Residency({"host": stays}))
    assert seconds == pytest.approx(max(io, compute), rel=0.03)


def test_groups_at_one_end_lose_a_third() -> None:
    """Why they are spread: at the end that stays nothing moves while it computes but what the slots hold."""
    groups = list(sizes())
    first_half = tuple(groups[: len(groups) // 2])
    spread_out = pass_seconds(timings(0.5), Residency({"host": spread(sizes(), sum(sizes().values()) // 2)}))
    assert pass_seconds(timings(0.5), Residency({"host": first_half})) > 1.3 * spread_out


def test_two_places() -> None:
    """The disk reads what stays in neither place, the link carries what does not stay on the device."""
    device = spread(sizes(), sum(sizes().values()) // 4)
    others = {group: size for group, size in sizes().items() if group not in device}
    host = spread(others, sum(others.values()) // 2)
    disk = 2.5 * sum(size for group, size in others.items() if group not in host) / 10_000
    link = sum(others.values()) / 10_000
    residency = Residency({"host": host, "device": device})
    assert pass_seconds(timings(0.1, disk=2.5), residency) == pytest.approx(max(disk, link), rel=0.03)
    disk /= 2.5 / 1.2
    assert pass_seconds(timings(0.1, disk=1.2), residency) == pytest.approx(max(disk, link), rel=0.03)


def test_where_everything_stays_only_computing_takes_time() -> None:
    seconds = pass_seconds(timings(0.5), Residency({"host": tuple(sizes())}))
    assert seconds == pytest.approx(0.5 * sum(sizes().values()) / 10_000, rel=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("disk_ms", [0.0, 30.0])
def test_no_policy_stands_still_or_becomes_slower(policy: str, disk_ms: float) -> None:
    """By what stays in the last place before computing; gpu_groups as few as can be."""
    times = layer_timings(layers=6, disk_ms=disk_ms, transfer_ms=60.0)
    groups = list(times.order)
    before = None
    for count in range(0, len(groups) + 1, 3):
        stays = tuple(groups[index * len(groups) // max(1, count)] for index in range(count))
        residency = Residency({"host": stays}) if disk_ms == 0 else Residency({"device": stays})
        run = simulate(times, POLICIES[policy], passes=4, gpu_groups=2, residency=residency)
        seconds = sum(steady_seconds(run.trace.spans, times.order))
        assert before is None or seconds <= before * 1.01
        before = seconds


@pytest.mark.parametrize("policy", POLICIES if EVERYTHING else ("backpressure", "stage1", "stage3"))
def test_any_mixture_of_places_gets_through(policy: str) -> None:
    times = layer_timings(layers=3, disk_ms=50.0)
    mixtures = itertools.product(("disk", "host", "device"), repeat=len(times.order))
    moving = [places for places in mixtures if places.count("disk") in (2, 3)]
    for places in moving if EVERYTHING else moving[:: 2 if policy == "backpressure" else 9]:
        by_place = {
            place: tuple(group for group, other in zip(times.order, places, strict=True) if other == place)
            for place in ("host", "device")
        }
        simulate(times, POLICIES[policy], passes=3, gpu_groups=2, host_groups=2, residency=Residency(by_place))
