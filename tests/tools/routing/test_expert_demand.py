"""What passes use and miss: by a model's own routing, by another's, or guessed to be flat."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.tools.routing.expert_demand import FLAT, flat_demand, recorded_demand, scaled_demand
from pipeline.tools.routing.replay_routing import REPLAYED, Wants, replay_routing
from tests.support.synthetic_routing import synthetic_routing

LRU = REPLAYED["lru"]
ROUTING = synthetic_routing(tokens=400, experts=64, chosen=4)


def test_flat_routing_finds_the_share_that_is_kept() -> None:
    demand = flat_demand(ROUTING.model, [128 + 8], 1, LRU)
    assert demand.how == FLAT
    assert demand.hit_rate == pytest.approx(128 / 256, abs=0.04)
    assert np.all(demand.used == 4)
    shared = flat_demand(ROUTING.model, [256], 8, LRU)
    assert float(shared.used.mean()) == pytest.approx(64 * (1 - (1 - 4 / 64) ** 8), rel=0.03)
    assert shared.hit_rate > 0.99


def test_recorded_routing_counts_when_caches_are_warm() -> None:
    demand = recorded_demand(ROUTING, [100, 40], 1, LRU)
    replayed = replay_routing(Wants.of(ROUTING), [100, 40], LRU)
    for have, want in zip(demand.missed, replayed.misses, strict=True):
        assert np.array_equal(have, want[200:])
    assert demand.hit_rate == 1 - demand.missed[0].sum() / (201 * 16)
    several = recorded_demand(ROUTING, [100], 4, LRU)
    assert several.used.shape == (50, 4)
    apart = ROUTING.ids[8:].reshape(4, 100, 4, 4)[:, 50:]
    assert several.used[:, 0].tolist() == [len(set(apart[:, index, 0].flatten())) for index in range(50)]


def test_another_model_of_the_same_shape_finds_as_much() -> None:
    """Flat routing is drawn, and the measured part is another one: not exactly as much."""
    other = replace(ROUTING.model, name="other", digest="1" * 64)
    own, scaled = recorded_demand(ROUTING, [100], 1, LRU), scaled_demand(ROUTING, other, [100], 1, LRU)
    assert scaled.hit_rate == pytest.approx(own.hit_rate, abs=0.02)
    assert "another model" in scaled.how
    assert " to " not in scaled.how


def test_a_model_with_more_experts_is_guessed_between_two_bounds() -> None:
    larger = replace(ROUTING.model, experts=128)
    own = recorded_demand(synthetic_routing(tokens=400, experts=128, chosen=4), [100], 1, LRU)
    scaled = scaled_demand(ROUTING, larger, [100], 1, LRU)
    assert scaled.hit_rate == pytest.approx(own.hit_rate, abs=0.05)
    low, high = (int(part.split("%")[0]) for part in scaled.how.split("guessed: ")[1].split(" to "))
    assert low / 100 - 0.005 <= scaled.hit_rate <= high / 100 + 0.005
    assert low < high
