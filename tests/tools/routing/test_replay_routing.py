"""A replay counts what caches of any size would have found of recorded routing."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from actors.core.expert_cache import streams, window_of
from pipeline.tools.routing.belady import Belady
from pipeline.tools.routing.recorded_routing import RecordedRouting, RoutedModel
from pipeline.tools.routing.replay_routing import REPLAYED, Wants, replay_routing
from tests.support.synthetic_routing import synthetic_routing


def routing_of(*passes: list[list[list[int]]], experts: int = 8, prompts: int = 0) -> RecordedRouting:
    """Of passes, rows, layers and ids; the first passes are of prompts."""
    ids = np.concatenate([np.array(one, np.uint16) for one in passes])
    rows = np.array([len(one) for one in passes], np.int32)
    from_prompt = np.array([index < prompts for index, one in enumerate(passes) for _ in one], np.uint8)
    layers, chosen = ids.shape[1:]
    return RecordedRouting(
        RoutedModel("by hand", "", tuple(range(layers)), experts, chosen, 100), rows, from_prompt, ids
    )


def test_rows_of_a_pass_share_an_expert_and_each_layer_has_its_own() -> None:
    wants = Wants.of(routing_of([[[1, 2], [1, 2]], [[2, 1], [3, 1]]], [[[1, 2], [2, 3]]]))
    replayed = replay_routing(wants, [5], REPLAYED["lru"], window=1)
    assert replayed.misses[0].tolist() == [[2, 3], [0, 0]]  # the fifth pushed out the first of its layer
    assert replayed.hits[0].tolist() == [[0, 0], [2, 2]]
    assert replay_routing(wants, [16], REPLAYED["lru"]).misses[0].tolist() == [[2, 3], [0, 0]]
    assert replayed.hit_rate() == 4 / 9
    assert replayed.read_per_token == 5 / 3


def test_as_many_slots_as_in_a_run_keep_nothing() -> None:
    """Those of 72 MiB, 3 to 64 of them; or half."""
    routing = synthetic_routing()
    for expert_bytes, moving in {400 << 20: 3, 9 << 20: 8, 10: 64, 1 << 20: 64}.items():
        assert window_of(expert_bytes) == moving
        wants = Wants.of(replace(routing, model=replace(routing.model, expert_bytes=expert_bytes)))
        for slots, kept in {100: max(50, 100 - moving), 12: max(6, 12 - moving)}.items():
            replayed, other = (
                replay_routing(wants, [count], REPLAYED["lru"], window=window)
                for count, window in ((slots, None), (kept + 1, 1))
            )
            assert replayed.hits[0].tolist() == other.hits[0].tolist()


def test_prompts_are_told_from_decoding_and_stream() -> None:
    prompt = [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]
    wants = Wants.of(routing_of(prompt, [[[0, 1]]], [[[0, 1]]], [[[0, 1]]], prompts=1))
    assert streams(8, 8)
    assert wants.streamed.tolist() == [[True], [False], [False], [False]]
    replayed = replay_routing(wants, [3], REPLAYED["lru"], window=1)
    assert replayed.misses[0].tolist() == [[8], [0], [0], [0]]
    assert (replayed.hit_rate(), wants.tokens) == (1, 3)


def test_what_the_device_lacks_is_asked_of_the_host() -> None:
    wants = Wants.of(routing_of(*([[[index % 4]]] for index in range(12))))
    replayed = replay_routing(wants, [6, 2], REPLAYED["lru"], window=1)
    assert [int(misses.sum()) for misses in replayed.misses] == [4, 12]
    assert [replayed.hit_rate(0), replayed.hit_rate(-1)] == [8 / 12, 0]
    assert replayed.read_per_token == 4 / 12


def test_what_is_kept_is_shared_out_to_the_layers() -> None:
    """Of all layers the least recently used expert would be the next one, and nothing be found below 12."""
    wants = Wants.of(routing_of(*([[[0, 1]] * 6] for _ in range(20))))
    for capacity in range(1, 14):
        replayed = replay_routing(wants, [capacity + 1], REPLAYED["lru"], window=1)
        assert int(replayed.hits[0][-1].sum()) == min(capacity, 12)


def best_misses(uses: list[int], capacity: int) -> int:
    """By trying all that could be kept after each use."""
    states = {frozenset[int](): 0}
    for one in uses:
        found: dict[frozenset[int], int] = {}
        for kept, misses in states.items():
            seen = misses + (one not in kept)
            for size in range(capacity + 1):
                for left in combinations(kept | {one}, size):
                    key = frozenset(left)
                    found[key] = min(found.get(key, seen), seen)
        states = found
    return min(states.values())


@pytest.mark.parametrize("seed", range(4))
def test_belady_is_the_best_that_can_be_had(seed: int) -> None:
    uses = np.random.default_rng(seed).integers(0, 5, 14).tolist()
    wants = Wants.of(routing_of(*([[[one]]] for one in uses), experts=5))
    for capacity in (1, 2, 3):
        replayed = replay_routing(wants, [capacity + 1], REPLAYED["belady"], window=1)
        assert int(replayed.misses[0].sum()) == best_misses(uses, capacity)


def test_belady_bounds_all_policies_and_flat_routing_hits_by_share() -> None:
    for skew, per_layer in ((1.2, False), (0.0, False), (1.2, True)):
        wants = Wants.of(synthetic_routing(skew=skew, persistence=0.5 * bool(skew), tokens=300))
        rates = {
            name: replay_routing(wants, [40], make, window=8, per_layer=per_layer).hit_rate()
            for name, make in REPLAYED.items()
        }
        assert rates.pop("none") == 0
        assert max(rates, key=rates.__getitem__) == "belady"
        if not skew:
            assert rates["lru"] == pytest.approx(32 / 128, abs=0.03)


def test_belady_does_not_look_back() -> None:
    policy = Belady([(0, 1), (0, 2), (0, 1), (0, 3)])
    policy.use((0, 1))
    policy.use((0, 2))
    assert next(policy.victims()) == (0, 2)
    policy.use((0, 1))
    policy.remove((0, 2))
    assert next(policy.victims()) == (0, 1)
