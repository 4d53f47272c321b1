"""Formula and simulation agree on any timings, given slots and layers enough."""

import math
from dataclasses import replace
from random import Random

import pytest
from support.cases import EVERYTHING

from pipeline.engine.policies import CURRENT_CHAINED, POLICIES, Policy
from pipeline.errors import ConfigError
from pipeline.tools.simulation.closed_forms import closed_form_ms
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings

SETTINGS = 100 if EVERYTHING else 10
TWO_HOP_SETTINGS = 30 if EVERYTHING else 4
GPU_GROUPS = 6
LEAST_LAYERS, MOST_LAYERS = 12, 120
ROWS = {**POLICIES, "current, chained": CURRENT_CHAINED}


def random_timings(random: Random, *, hops: int = 1) -> LayerTimings:
    seconds = [random.uniform(0.01, 0.2) for _ in range(7)]
    return LayerTimings(
        layers=1,
        attn=seconds[0],
        ffn=seconds[1],
        attn_io=seconds[2],
        ffn_io=seconds[3],
        attn_disk=seconds[4] * (hops == 2),
        ffn_disk=seconds[5] * (hops == 2),
        kv_seconds=random.choice([0.0, seconds[6]]),
        check_seconds=random.choice([0.0, 0.005, 0.02]),
    )


def enough_layers(policy: Policy, timings: LayerTimings) -> float:
    """So many that what the first layers gained or lost is used up in the first half.

    Slots hold half as many layers of transfers. Each layer uses up the difference between the slowest resource and the
    next, so the nearer to balance, the longer that takes.
    """
    if policy.triggered and not policy.goes_to_depth:
        return LEAST_LAYERS
    checks = 2 * timings.check_seconds if policy.waits == "blocking" else 0.0
    computing = (timings.attn, timings.ffn) if policy.micro_batches > 1 else (timings.attn + timings.ffn + checks,)
    links = timings.attn_io + timings.ffn_io, timings.attn_disk + timings.ffn_disk
    if not timings.one_link:
        links = links[0] + timings.kv_seconds, links[1]
    *_, second, slowest = sorted((*computing, *links, timings.kv_seconds))
    return LEAST_LAYERS + GPU_GROUPS * slowest / (slowest - second)


def check(policy: Policy, random: Random, *, hops: int) -> None:
    timings = random_timings(random, hops=hops)
    while (layers := enough_layers(policy, timings)) > MOST_LAYERS:
        timings = random_timings(random, hops=hops)
    if hops == 2 and policy.goes_to_depth and policy.waits != "chained":
        timings = replace(timings, kv_seconds=0.0)  # their host asks for blocks late, behind bursts of groups
    elif hops == 2 and timings.kv_seconds:
        layers *= 2  # the blocks of three layers, too, come ahead
    timings = replace(timings, layers=math.ceil(layers))
    measured = simulate(timings, policy, gpu_groups=GPU_GROUPS).overlap().ms_per_layer
    within = 0.02 if hops == 2 and timings.kv_seconds else 0.005
    assert measured == pytest.approx(closed_form_ms(policy.name, timings, policy.micro_batches), rel=within), timings


@pytest.mark.parametrize("name", ROWS)
def test_one_hop(name: str) -> None:
    random = Random(f"one hop {name}")
    for _ in range(SETTINGS):
        policy = ROWS[name]
        if policy.micro_batches > 1 or not policy.triggered:
            policy = replace(policy, micro_batches=random.choice([1, 2, 3, 4]))
        check(policy, random, hops=1)


@pytest.mark.parametrize("name", ROWS)
def test_two_hops(name: str) -> None:
    random = Random(f"two hops {name}")
    for _ in range(TWO_HOP_SETTINGS):
        check(ROWS[name], random, hops=2)


def test_the_formulas_of_the_analysis_figures() -> None:
    analysis = LayerTimings(layers=80, attn=0.08, ffn=0.12, attn_io=0.1, ffn_io=0.1, check_seconds=0.005)
    per_layer = {name: closed_form_ms(name, analysis) for name in POLICIES}
    assert per_layer == pytest.approx(
        {
            "history1": 210,
            "history": 300,
            "current": 300,
            "stage1": 210,
            "stage2": 200,
            "stage3": 200,
            "backpressure": 200,
        }
    )
    assert closed_form_ms("stage3", replace(analysis, attn_io=0.01, ffn_io=0.01), 2) == pytest.approx(120)


def test_what_has_no_formula_is_refused() -> None:
    analysis = LayerTimings(layers=80, attn=0.08, ffn=0.12, attn_io=0.1, ffn_io=0.1)
    with pytest.raises(ConfigError, match="did you mean 'history1'"):
        closed_form_ms("histry1", analysis)
    with pytest.raises(ConfigError, match="need 1 for policy stage2, which does not chain, have 2"):
        closed_form_ms("stage2", analysis, 2)
