"""What moving KV blocks costs, with the production actors of both lines."""

from dataclasses import replace

import pytest

from actors.core.trace import Span
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.intervals import total_seconds, union, within
from pipeline.tools.trace.recording import COMPUTE, KV_IN, KV_OUT, LINK

LAYERS, PASSES = 80, 3
COMPUTE_SECONDS = 0.2
ONE_HOP = LayerTimings(layers=LAYERS, attn=0.08, ffn=0.12, attn_io=0.02, ffn_io=0.1)
TWO_HOPS = replace(ONE_HOP, attn_io=0.01, ffn_io=0.05, attn_disk=0.02, ffn_disk=0.1)
H2D_SECONDS = {False: 0.0, True: 0.06}
"""Of the weights of a layer, on the lane that KV blocks share; with one hop they use none of it."""


def spans(timings: LayerTimings, gpu_groups: int) -> list[Span]:
    simulated = simulate(timings, POLICIES["backpressure"], passes=PASSES, gpu_groups=gpu_groups)
    return [span for span in simulated.trace.spans if span.what == "work"]


def pass_seconds(work: list[Span]) -> float:
    """Of one pass, after the first, which begins with an empty line."""
    ends = sorted(span.ended for span in work if span.actor == COMPUTE)
    return (ends[-1] - ends[2 * LAYERS - 1]) / (PASSES - 1)


@pytest.mark.parametrize("gpu_groups", [4, 10])
@pytest.mark.parametrize("timings", [ONE_HOP, TWO_HOPS], ids=["one hop", "two hops"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.69])
def test_moves_that_are_shorter_than_computing_cost_nothing(
    share: float, timings: LayerTimings, gpu_groups: int
) -> None:
    work = spans(replace(timings, kv_seconds=share * COMPUTE_SECONDS), gpu_groups)
    assert pass_seconds(work) <= LAYERS * COMPUTE_SECONDS * 1.005


@pytest.mark.parametrize("gpu_groups", [4, 10])
@pytest.mark.parametrize("timings", [ONE_HOP, TWO_HOPS], ids=["one hop", "two hops"])
@pytest.mark.parametrize("share", [1.1, 1.5, 3.0])
def test_longer_moves_bound_the_pass_at_their_own_time(share: float, timings: LayerTimings, gpu_groups: int) -> None:
    """All layers but the first move their blocks, through the lane that they share with the weights."""
    kv_seconds = share * COMPUTE_SECONDS
    work = spans(replace(timings, kv_seconds=kv_seconds), gpu_groups)
    own = (LAYERS - 1) * kv_seconds + LAYERS * H2D_SECONDS[timings is TWO_HOPS]
    assert pass_seconds(work) == pytest.approx(own, rel=0.02)


def test_blocks_come_and_rows_go_at_the_same_time() -> None:
    work = spans(replace(ONE_HOP, kv_seconds=0.3), 4)
    into, out = (union((span.started, span.ended) for span in work if span.actor == actor) for actor in (KV_IN, KV_OUT))
    both = sum(total_seconds(within(into, *stretch)) for stretch in out)
    assert both > 0.9 * total_seconds(out)
    assert sum(span.actor == KV_IN for span in work) == PASSES * (LAYERS - 1)


@pytest.mark.parametrize("actor", [LINK, KV_IN])
def test_each_uploader_keeps_one_copy_behind_the_one_that_runs(actor: str) -> None:
    """More would keep out the other uploader's, which may be needed earlier."""
    timings = replace(TWO_HOPS, layers=7, attn_disk=1e-6, ffn_disk=1e-6, kv_seconds=0.3)
    own = [span for span in simulate(timings, POLICIES["backpressure"], passes=3).trace.spans if span.actor == actor]
    landed = {span.seq: span.ended for span in own if span.what == "work"}
    waits = [span for span in own if span.what == "lane"]
    assert waits
    assert [wait.ended for wait in waits] == pytest.approx([landed[wait.seq - 2] for wait in waits])
