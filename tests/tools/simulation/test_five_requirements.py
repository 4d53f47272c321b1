"""What perfect overlap means, stated on spans: of the product's own policy, and of the one that it came from."""

from dataclasses import dataclass

import pytest

from actors.core.trace import Span
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.intervals import total_seconds, union, within

LAYERS = 12
TIMINGS = LayerTimings(
    layers=LAYERS,
    attn=0.08,
    ffn=0.12,
    attn_io=0.06,
    ffn_io=0.08,
    attn_disk=0.04,
    ffn_disk=0.06,
    kv_seconds=0.05,
)


@dataclass(frozen=True)
class Run:
    """The spans of one pass, and when each group's bytes began to move."""

    spans: list[Span]

    def of(self, actor: str) -> list[Span]:
        return [span for span in self.spans if span.actor == actor]

    def computed(self, layer: int, group: str) -> Span:
        return next(span for span in self.of("compute_scheduler") if (span.layer, span.group) == (layer, group))

    def begun(self, layer: int, group: str) -> float:
        """The disk serves reads in call order: a read begins to move when the one before has ended."""
        free_at = 0.0
        for span in sorted(self.of("disk_reader"), key=lambda span: span.seq):
            if (span.layer, span.group) == (layer, group):
                return max(span.started, free_at)
            free_at = span.ended
        raise AssertionError(f"layer {layer} {group} was never read")

    def share_beside_computing(self, actor: str) -> float:
        """How much of an actor's time falls into computations, between the first and the last of them."""
        computing = union((span.started, span.ended) for span in self.of("compute_scheduler"))
        busy = within(union((span.started, span.ended) for span in self.of(actor)), computing[0][0], computing[-1][1])
        return sum(total_seconds(within(computing, *stretch)) for stretch in busy) / total_seconds(busy)


def run(policy: str) -> Run:
    """The second of three passes: the first begins with an empty line, and the end of the last cuts off KV moves."""
    simulated = simulate(TIMINGS, POLICIES[policy], passes=3)
    work = [span for span in simulated.trace.spans if span.what == "work"]
    return Run([span for span in work if span.seq // (LAYERS - 1 if span.group == "kv" else 2 * LAYERS) == 1])


@pytest.fixture(scope="module")
def backpressure() -> Run:
    return run("backpressure")


@pytest.fixture(scope="module")
def history() -> Run:
    return run("history")


def test_1_weights_move_while_the_device_computes(backpressure: Run, history: Run) -> None:
    for hop in ("disk_reader", "gpu_uploader"):
        assert len(backpressure.of(hop)) == 2 * LAYERS
        assert backpressure.share_beside_computing(hop) == pytest.approx(1)
        assert history.share_beside_computing(hop) < 0.5


def test_2_the_kv_cache_moves_both_ways_while_the_device_computes(backpressure: Run, history: Run) -> None:
    for way in ("kv_uploader", "kv_swapper"):
        assert [span.layer for span in backpressure.of(way)] == list(range(1, LAYERS)), "the first layer's stay"
        assert backpressure.share_beside_computing(way) == pytest.approx(1)
    assert history.share_beside_computing("kv_uploader") < 0.2, "it asks for blocks when the layer before has ended"


def layers_3(run: Run) -> list[int]:
    """Layers while which computed the weights of the next were on the way, both groups."""
    return [
        layer
        for layer in range(LAYERS - 1)
        if all(run.begun(layer + 1, group) < run.computed(layer, "ffn").ended for group in ("attn", "ffn"))
    ]


def layers_4(run: Run) -> list[int]:
    """Layers during whose attention their own ffn was on the way."""
    return [layer for layer in range(LAYERS) if run.begun(layer, "ffn") < run.computed(layer, "attn").ended]


def layers_5(run: Run) -> list[int]:
    """Layers during whose ffn the attention of the next was on the way."""
    return [layer for layer in range(LAYERS - 1) if run.begun(layer + 1, "attn") < run.computed(layer, "ffn").ended]


def test_3_between_layers(backpressure: Run, history: Run) -> None:
    assert layers_3(backpressure) == list(range(LAYERS - 1))
    assert layers_3(history) == [], "the next ffn is asked for by nobody"


def test_4_inside_a_layer(backpressure: Run, history: Run) -> None:
    assert layers_4(backpressure) == list(range(LAYERS))
    assert layers_4(history) == []
    for layer in range(LAYERS):
        assert history.begun(layer, "ffn") == pytest.approx(history.computed(layer, "attn").ended), "demanded"


def test_5_across_layers(backpressure: Run, history: Run) -> None:
    """The one requirement that `history` meets: it is all that it asks for."""
    assert layers_5(backpressure) == layers_5(history) == list(range(LAYERS - 1))
    for layer in range(LAYERS - 1):
        assert history.begun(layer + 1, "attn") == pytest.approx(history.computed(layer, "ffn").started)


def test_the_device_never_waits_for_what_comes_in_time(backpressure: Run) -> None:
    """All five together: from the first computation on, the device computes without a gap."""
    computing = sorted((span.started, span.ended) for span in backpressure.of("compute_scheduler"))
    idle = computing[-1][1] - computing[0][0] - sum(ended - started for started, ended in computing)
    assert idle == pytest.approx(0, abs=1e-6)
    assert computing[-1][1] - computing[0][0] == pytest.approx(LAYERS * 0.2)
