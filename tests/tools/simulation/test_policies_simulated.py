"""All seven policies with the timings of the analysis, on the production actors."""

import time
from dataclasses import replace

import pytest

from pipeline.engine.policies import CURRENT_CHAINED, POLICIES, Policy
from pipeline.tools.simulation.closed_forms import closed_form_ms
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.overlap import Overlap

ANALYSIS = LayerTimings(layers=80, attn=0.08, ffn=0.12, attn_io=0.1, ffn_io=0.1, check_seconds=0.005)
PER_LAYER_MS = {
    "history1": 210,
    "history": 300,
    "current": 300,
    "stage1": 210,
    "stage2": 200,
    "stage3": 200,
    "backpressure": 200,
}


def overlap(policy: Policy, timings: LayerTimings = ANALYSIS, gpu_groups: int = 10, passes: int = 1) -> Overlap:
    return simulate(timings, policy, gpu_groups=gpu_groups, passes=passes).overlap()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_every_row_has_its_figure(policy: Policy) -> None:
    row = overlap(policy)
    assert row.ms_per_layer == pytest.approx(PER_LAYER_MS[policy.name], rel=1e-6)
    assert row.ms_per_layer == pytest.approx(closed_form_ms(policy.name, ANALYSIS, policy.micro_batches), rel=0.005)
    assert row.ideal_ms == pytest.approx(16_000)
    assert row.ratio_to_ideal == pytest.approx(row.total_ms / row.ideal_ms)
    assert row.host_blocked_ms == pytest.approx(5 if policy.waits == "blocking" else 0)
    assert row.l0_l1_ms == pytest.approx(row.gap_in_layer_ms + row.gap_between_layers_ms)
    assert row.l0_l4_ms == pytest.approx(4 * row.l0_l1_ms)


@pytest.mark.parametrize(
    ("name", "groups"),
    [(name, (5, 4)) for name in ("stage1", "stage2", "stage3")] + [("history1", (4, 4)), ("history", (0, 1))],
)
def test_triggers_ask_for_as_many_groups_as_the_analysis_says(name: str, groups: tuple[int, int]) -> None:
    assert tuple(overlap(POLICIES[name]).groups_requested.values()) == groups


def test_one_layer_ahead_leaves_the_link_idle_during_attention() -> None:
    """The analysis: nothing during MHA, 83 % during FFN. The last of the 80 ffns has no attention after it."""
    row = overlap(POLICIES["history"])
    assert row.link_use["attn_window"] == 0
    assert row.link_use["ffn_window"] == pytest.approx(100 / 120 * 79 / 80)
    assert (row.gap_in_layer_ms, row.gap_between_layers_ms) == (pytest.approx(100), pytest.approx(0, abs=1e-6))
    assert row.depth_used == 1


def test_chaining_alone_buys_current_nothing() -> None:
    """It waits for bytes that nobody has asked for, and not for the host."""
    as_found, chained = overlap(POLICIES["current"]), overlap(CURRENT_CHAINED)
    assert chained.as_dict() == as_found.as_dict()


def test_micro_batches_buy_what_one_batch_cannot_have() -> None:
    """Where computing is the bound, an ffn beside an attention is worth the shorter of the two."""
    bound_by_compute = replace(ANALYSIS, attn=0.1, ffn=0.1, attn_io=0.03, ffn_io=0.03)
    assert overlap(POLICIES["stage2"], bound_by_compute).ms_per_layer == pytest.approx(200)
    assert overlap(POLICIES["stage3"], bound_by_compute).ms_per_layer == pytest.approx(100)


def test_slots_clip_the_depth_and_the_row_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    deep, clipped = overlap(POLICIES["stage1"]), overlap(POLICIES["stage1"], gpu_groups=4)
    assert (deep.depth_used, clipped.depth_used) == (4, 1)
    assert tuple(clipped.groups_requested.values()) == (2, 1)
    assert clipped.groups_on_device_peak <= 4 < deep.groups_on_device_peak <= 10
    assert "depth clipped from 4 to 1" in caplog.text


def test_backpressure_reads_on_into_the_next_pass() -> None:
    """Every other policy lets the line run dry between two passes."""
    one, two = (overlap(POLICIES["backpressure"], passes=passes).total_ms for passes in (1, 2))
    assert two - one == pytest.approx(16_000)
    one, two = (overlap(POLICIES["stage2"], passes=passes).total_ms for passes in (1, 2))
    assert two - one > 16_100


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_two_runs_are_the_same(policy: Policy) -> None:
    timings = replace(ANALYSIS, layers=20, attn_disk=0.09, ffn_disk=0.09, kv_seconds=0.02, jitter=0.4, seed=3)
    first, second = (simulate(timings, policy, passes=2).trace for _ in range(2))
    assert len(first.spans) > 20 * 2 * 2
    assert (list(first.spans), list(first.counts)) == (list(second.spans), list(second.counts))
    assert list(first.spans) != list(simulate(replace(timings, seed=4), policy, passes=2).trace.spans)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_a_pass_of_eighty_layers_costs_a_fraction_of_a_second(policy: Policy) -> None:
    seconds = []
    for _ in range(5):
        started = time.thread_time()  # what others on the machine take is not its cost
        simulate(ANALYSIS, policy)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.3


def test_a_pass_of_one_token_is_not_cut() -> None:
    """Micro-batches of no tokens would compute beside each other for nothing."""
    timings = LayerTimings(layers=20, attn=0.1, ffn=0.1, attn_io=0.01, ffn_io=0.01)
    whole, cut = (simulate(timings, POLICIES["stage3"], pass_tokens=tokens).overlap() for tokens in (1, 2))
    assert whole.ms_per_layer == pytest.approx(200, rel=0.01)
    assert cut.ms_per_layer == pytest.approx(100, rel=0.05)
