"""Which section computes each layer: against all ways to deal them, and against links followed layer by layer."""

import itertools
import random
from collections.abc import Sequence

import pytest

from pipeline.engine.dealing import Share, deal, hops, pass_seconds, wanted_bytes
from pipeline.errors import ConfigError

MANY_PASSES = 30


def alike(count: int, room: int = 0, rate: float = 1.0, slots: int = 20) -> list[Share]:
    return [Share(room, rate, slots)] * count


def all_ways(layers: int, sections: int) -> list[tuple[int, ...]]:
    """Every deal in which the first section has the first layer, and each a layer beside the head."""
    ways = itertools.product(range(sections), repeat=layers + 1)
    return [one for one in ways if one[0] == 0 and len({*one[:-1]}) == sections]


def followed(
    layer_bytes: Sequence[int], sections: Sequence[int], shares: Sequence[Share], hop_seconds: float, computes: float
) -> float:
    """Seconds per pass of links that read ahead while their slots have room, where nothing stays."""
    count, each = len(layer_bytes), computes / len(layer_bytes)
    held: list[list[tuple[float, int]]] = [[] for _ in shares]  # (when computed, bytes) of what came, in order
    free = [0.0] * len(shares)
    now, ends = 0.0, []
    for step in range(MANY_PASSES * count):
        layer = step % count
        section, nbytes = sections[layer], layer_bytes[layer]
        came = held[section]
        start, taken = free[section], nbytes
        for computed, size in reversed(came):
            taken += size
            if taken > shares[section].slot_bytes:
                start = max(start, computed)
                break
        free[section] = start + nbytes / shares[section].bytes_per_second
        changes = sections[layer - 1] != section
        now = max(now + changes * hop_seconds, free[section]) + each
        came.append((now, nbytes))
        ends.append(now)
    half = MANY_PASSES // 2
    return (ends[-1] - ends[half * count - 1]) / (MANY_PASSES - half)


def test_equal_devices_take_turns_and_each_halves_the_time() -> None:
    layers = [10] * 13
    shares = alike(3, slots=30)
    dealt = deal(layers, shares)
    assert dealt[:12] == tuple(layer % 3 for layer in range(12))
    assert pass_seconds(layers, dealt, shares) == 50  # five of thirteen layers
    assert pass_seconds([10] * 12 + [0], (*dealt[:12], 0), shares) == 40


def test_slots_for_less_than_a_layer_are_no_reason_to_let_links_rest() -> None:
    layers, shares = [10] * 12 + [0], alike(3, slots=8)
    dealt = deal(layers, shares)
    assert dealt[:12] == tuple(layer % 3 for layer in range(12))
    assert pass_seconds(layers, dealt, shares) < pass_seconds(layers, [0] * 4 + [1] * 4 + [2] * 5, shares)


def test_layers_that_all_stay_follow_one_another() -> None:
    dealt = deal([10] * 8 + [20], alike(2, room=60), hop_seconds=0.001)
    assert dealt == (0, 0, 0, 0, 0, 1, 1, 1, 1)
    assert hops(dealt) == 2
    assert deal([10] * 8 + [20], [Share(90, 1, 20), Share(35, 1, 20)]) == (0,) * 7 + (1, 1)


def test_a_dear_hop_makes_longer_runs() -> None:
    layers, shares = [10] * 24 + [0], alike(2, slots=60)
    counted = [hops(deal(layers, shares, seconds)) for seconds in (0.0, 5.0, 15.0, 30.0, 1000.0)]
    assert counted == sorted(counted, reverse=True)
    assert counted[-1] == 2
    for seconds in (5.0, 15.0):
        dealt = deal(layers, shares, seconds)
        assert pass_seconds(layers, dealt, shares, seconds) == 120, "hops are hidden behind the links"


def test_runs_fill_all_slots_where_hops_are_dear() -> None:
    """With slots for two layers. Runs of two layers leave none for a link to go on, but halve the hops."""
    layers, shares = [10] * 32 + [0], alike(4, slots=20)
    counted = [hops(deal(layers, shares, seconds)) for seconds in (0.5, 2.5, 4.0)]
    assert counted == [32, 32, 16]
    assert pass_seconds(layers, deal(layers, shares, 4.0), shares, 4.0) == 80


def test_a_pass_costs_at_most_a_layer_more_than_the_best_of_all_ways() -> None:
    chosen = random.Random(23)
    for _ in range(60):
        count = chosen.choice([2, 2, 3])
        layers = chosen.randint(count, 7 if count == 2 else 5)
        sizes = [chosen.choice([10, 10, 14, 25]) for _ in range(layers)] + [chosen.choice([0, 7, 40])]
        shares = [
            Share(chosen.choice([0, 0, 20, 60]), chosen.choice([1.0, 1.0, 2.0, 5.0]), chosen.choice([10, 20, 30]))
            for _ in range(count)
        ]
        hop_seconds = chosen.choice([0.0, 0.0, 0.5, 4.0])
        dealt = deal(sizes, shares, hop_seconds)
        best = min(pass_seconds(sizes, one, shares, hop_seconds) for one in all_ways(layers, count))
        assert dealt[0] == 0
        assert len({*dealt[:-1]}) == count
        longest = max(sizes) / min(share.bytes_per_second for share in shares)
        found = pass_seconds(sizes, dealt, shares, hop_seconds)
        assert best <= found <= best + longest, (sizes, shares, hop_seconds, dealt)


def test_the_closed_form_is_what_links_do() -> None:
    """Without computing within a percent; where computing and late bytes take equally long both add up a little."""
    chosen = random.Random(7)
    for _ in range(100):
        count = chosen.choice([1, 2, 3, 4])
        layers = [10] * 24
        shares = alike(count, rate=chosen.choice([1.0, 4.0]), slots=chosen.choice([20, 40, 60]))
        run = chosen.choice([1, 2, 3, 6, 24 // count])
        sections = [layer // run % count for layer in range(24)]
        hop_seconds, computes = chosen.choice([0.0, 0.1, 3.0, 20.0]), chosen.choice([0.0, 24.0, 100.0])
        expected = pass_seconds(layers, sections, shares, hop_seconds, computes)
        seconds = followed(layers, sections, shares, hop_seconds, computes)
        assert 0.999 <= seconds / expected <= (1.3 if computes else 1.02), (sections, shares, hop_seconds, computes)


def test_the_last_run_goes_on_with_the_first_of_the_next_pass() -> None:
    layers, shares = [100] * 16 + [0], [Share(0, 1000.0, 200)] * 2
    around, following = [0] * 4 + [1] * 8 + [0] * 5, [0] * 8 + [1] * 9
    assert pass_seconds(layers, around, shares, 0.5) == pass_seconds(layers, following, shares, 0.5)
    assert pass_seconds(layers, around, shares, 0.5) == pytest.approx(
        followed(layers, around, shares, 0.5, 0), rel=0.02
    )


def test_behind_bytes_that_come_late_the_last_layer_is_still_computed() -> None:
    layers, shares = [10] * 12, alike(3, rate=1.0, slots=20)
    following = [layer // 4 for layer in range(12)]
    assert pass_seconds(layers, following, shares, compute_seconds=24) == 3 * (20 + 2)


def test_shares_are_what_makes_all_links_take_equally_long() -> None:
    shares = [Share(30, 1.0, 0), Share(10, 3.0, 0)]
    wanted = wanted_bytes(120, shares)
    assert wanted == [50, 70]
    assert [(one - share.room_bytes) / share.bytes_per_second for one, share in zip(wanted, shares, strict=True)] == [
        20,
        20,
    ]
    assert wanted_bytes(20, shares) == [15, 5]


def test_more_devices_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most one for each of the model's 2 layers, have 3"):
        deal([1, 1, 1], alike(3))


def test_layers_that_need_the_one_before_are_dealt_with_it() -> None:
    layer_bytes, joined = [10] * 8 + [5], {1, 2, 5}
    shares = [Share(0, 1.0, 40)] * 2
    dealt = deal(layer_bytes, shares, joined=joined)
    assert len(dealt) == len(layer_bytes)
    assert {*dealt} == {0, 1}
    assert all(dealt[layer] == dealt[layer - 1] for layer in joined)
    assert dealt != deal(layer_bytes, shares)
    with pytest.raises(ConfigError, match="at most one for each of the 5 runs of layers that need each other, have 6"):
        deal(layer_bytes, [Share(0, 1.0, 40)] * 6, joined=joined)


def test_room_is_kept_for_a_large_head_from_the_first_layer_on() -> None:
    shares = [Share(3, 1.0, 4), Share(0, 1.0, 2)]
    layer_bytes, dealt = [1, 1, 2, 6], (0, 1, 1, 0)
    assert deal(layer_bytes, shares, 1.0) == dealt, "else the head comes on top of two layers, and a pass takes 5 s"
    assert pass_seconds(layer_bytes, dealt, shares, 1.0) == 4.0
