"""Where the KV blocks of every layer live: in one place, evenly, and within the room if there is room for the slots."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.order import evenly
from pipeline.state.kv_placement import FEWEST_SHARED, MOST_SHARED, KvPlacement, place_kv

LAYERS = st.integers(1, 130)
ROOM = st.integers(0, 140)
LAYER_BYTES = 7


def check(placement: KvPlacement, layers: int) -> None:
    places = [*placement.device, *placement.host, *placement.disk]
    assert sorted(places) == list(range(layers)), "every layer in one place"
    assert placement.moving == tuple(sorted({*placement.host, *placement.disk}))
    for place in (placement.device, placement.host, placement.disk):
        assert list(place) == sorted(place)
    assert 0 <= placement.device_slots <= MOST_SHARED
    assert 0 <= placement.host_slots <= MOST_SHARED
    if placement.device:
        assert placement.device[0] == 0, "moving begins while the first layer computes"
        assert_even(placement.device, range(layers))


def assert_even(chosen: tuple[int, ...], among: range) -> None:
    """And the first of all is the first of them."""
    if not chosen:
        return
    assert chosen[0] == 0
    gaps = [after - before for before, after in itertools.pairwise((*chosen, among.stop))]
    assert max(gaps) - min(gaps) <= 1


@given(LAYERS, ROOM, ROOM)
def test_three_places(layers: int, device_room: int, host_room: int) -> None:
    check_three_places(layers, device_room, host_room)


@pytest.mark.parametrize("layers", range(1, 13))
def test_few_layers_in_every_room(layers: int) -> None:
    for device_room, host_room in itertools.product(range(layers + 2), repeat=2):
        check_three_places(layers, device_room, host_room)


def placed(layers: int, *rooms: int) -> KvPlacement:
    """Layers that are alike, in rooms for so many of them."""
    return place_kv(dict.fromkeys(range(layers), LAYER_BYTES), [(room + 1) * LAYER_BYTES - 1 for room in rooms])


def check_three_places(layers: int, device_room: int, host_room: int) -> None:
    placement = placed(layers, host_room, device_room)
    least = min(FEWEST_SHARED, layers)
    check(placement, layers)
    if device_room >= layers:
        assert placement.device == tuple(range(layers))
        return
    assert placement.device_slots >= least
    assert len(placement.device) + placement.device_slots == max(device_room, least), "no room is left unused"
    if placement.disk:
        least = min(FEWEST_SHARED, len(placement.moving))
        assert placement.host_slots >= least
        assert len(placement.host) + placement.host_slots == max(host_room, least), "nor in host memory"
        assert host_room < len(placement.moving)
        assert_even(tuple(placement.moving.index(layer) for layer in placement.host), range(len(placement.moving)))
    else:
        assert placement.host_slots == 0


@given(LAYERS, ROOM)
def test_one_place_and_the_disk(layers: int, room: int) -> None:
    placement = placed(layers, room)
    check(placement, layers)
    assert placement.host == ()
    assert placement.device_slots == 0
    assert len(placement.device) + placement.host_slots == min(max(room, FEWEST_SHARED), layers)
    assert (placement.host_slots >= FEWEST_SHARED) == bool(placement.disk) or layers < FEWEST_SHARED


@given(st.lists(st.sampled_from([3, 7, 20]), min_size=1, max_size=60), st.integers(0, 400), st.integers(0, 400))
def test_layers_that_differ_stay_beside_slots_as_large_as_the_largest_that_moves(
    sizes: list[int], device_room: int, host_room: int
) -> None:
    placement = place_kv(dict(enumerate(sizes)), (host_room, device_room))
    assert sorted([*placement.device, *placement.host, *placement.disk]) == list(range(len(sizes)))
    in_host = tuple(placement.moving.index(layer) for layer in placement.host)
    moving_bytes = [sizes[layer] for layer in placement.moving]
    check_room(sizes, placement.device, placement.device_slots, device_room)
    check_room(moving_bytes, in_host, placement.host_slots, host_room)


def check_room(sizes: list[int], staying: tuple[int, ...], slots: int, room: int) -> None:
    """All that fit stay, as evenly as their sizes let them; with one slot less, where no layer stays beside three."""
    if sum(sizes) <= room:
        assert (len(staying), slots) == (len(sizes), 0)
        return
    others = [size for index, size in enumerate(sizes) if index not in staying]
    left = room - sum(sizes) + sum(others) - slots * max(others)
    assert min(FEWEST_SHARED, len(sizes)) <= slots <= min(MOST_SHARED, len(others))
    if staying:
        assert 0 <= left < min(others)
        assert staying[0] == 0
    else:
        assert left < sizes[0]


@given(st.integers(1, 200), st.data())
def test_spread_is_even_and_begins_with_the_first(layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, layers))
    chosen = evenly(range(layers), count)
    assert len(set(chosen)) == count
    assert chosen[:1] == (0,)[:count]
    assert_even(chosen, range(layers))


def test_a_third_slot_comes_before_a_second_layer_stays() -> None:
    assert [(p.device_slots, len(p.device)) for room in range(2, 6) for p in [placed(9, 9, room)]] == [
        (2, 0), (2, 1), (3, 1), (3, 2),
    ]  # fmt: skip
    assert [(p.host_slots, len(p.host)) for room in range(2, 6) for p in [placed(9, room, 2)]] == [
        (2, 0), (2, 1), (3, 1), (3, 2),
    ]  # fmt: skip


def test_large_layers_among_many_small_ones_use_the_room_that_is_left() -> None:
    sizes = [1, 1, 1, 30] * 8
    small = [layer for layer in range(32) if sizes[layer] == 1]
    for large in ([], [3], [3, 7]):
        room = 24 + 30 * len(large) + 3 * 30
        assert place_kv(dict(enumerate(sizes)), (1000, room)).device == tuple(sorted([*small, *large]))


def test_layers_keep_their_numbers_where_others_lie_between() -> None:
    placement = place_kv({1: 7, 4: 7, 7: 7, 10: 7}, (7, 21))
    assert (placement.device, placement.host, placement.disk) == ((1,), (), (4, 7, 10))


def test_it_says_where_they_live() -> None:
    placement = placed(8, 4, 4)
    assert str(placement) == "stay on the device in 1 of 8 layers, live in host memory in 1, and on the disk in 6"
