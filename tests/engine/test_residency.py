"""Which groups stay: within the room, all of it used, spread evenly by bytes."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.residency import place_groups, spread

SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=200).map(
    lambda sizes: {(layer, "ffn"): size for layer, size in enumerate(sizes)}
)
Sizes = dict[tuple[int, str], int]


def layers_of(count: int, attn: int, ffn: int) -> Sizes:
    return {(layer, group): size for layer in range(count) for group, size in (("attn", attn), ("ffn", ffn))}


@given(SIZES, st.integers(-50, 150_000))
def test_what_stays_fits_and_no_other_would(sizes: Sizes, room: int) -> None:
    stays = spread(sizes, room)
    assert list(stays) == [group for group in sizes if group in stays], "in compute order, each once"
    held = sum(sizes[group] for group in stays)
    assert held <= max(0, room)
    moving = [size for group, size in sizes.items() if group not in stays]
    if room >= sum(sizes.values()):
        assert not moving
    assert all(size > room - held for size in moving)


@given(SIZES, st.floats(0, 1))
def test_any_run_of_groups_keeps_its_share(sizes: Sizes, share: float) -> None:
    """Up to twice the largest group, however long the run: so what moves comes at an even pace."""
    stays = spread(sizes, int(share * sum(sizes.values())))
    held = itertools.accumulate(size if group in stays else 0 for group, size in sizes.items())
    paid = itertools.accumulate(share * size for size in sizes.values())
    assert all(abs(one - other) <= 2 * max(sizes.values()) + 1 for one, other in zip(held, paid, strict=True))


def test_small_groups_take_what_large_ones_leave() -> None:
    sizes = layers_of(32, attn=21, ffn=100)
    rooms = range(0, 121 * 32, 7)
    left = [room - sum(sizes[group] for group in spread(sizes, room)) for room in rooms]
    assert sum(one < 21 for one in left) > 0.8 * len(rooms)


def test_a_quarter_is_every_fourth() -> None:
    stays = spread(layers_of(8, attn=10, ffn=10), 40)
    assert stays == ((1, "ffn"), (3, "ffn"), (5, "ffn"), (7, "ffn"))


def test_the_device_is_filled_first_and_nothing_stays_twice() -> None:
    device, host = layers_of(8, 10, 40), layers_of(8, 12, 44)
    placed = place_groups({"host": host, "device": device}, {"host": 150, "device": 200})
    on_device, in_host = placed.stays("device"), placed.stays("host")
    assert sum(device[group] for group in on_device) in range(181, 201)
    assert sum(host[group] for group in in_host) in range(129, 151)
    assert not set(on_device) & set(in_host)
    assert placed.moving_bytes("device", device) == sum(device.values()) - sum(device[group] for group in on_device)
    assert placed.moving_bytes("host", host) == sum(host[one] for one in host if one not in (*on_device, *in_host))


def test_of_one_place_what_stays_is_all_that_stays() -> None:
    sizes = layers_of(8, 12, 44)
    placed = place_groups({"host": sizes}, {"host": 150, "disk": 1})
    assert placed.stays("host") == tuple(group for group in sizes if group in placed.arrived("host")) != ()
