"""Which slots a budget has, and which of them a group needs."""

import pytest

from pipeline.groups.slot_kinds import SlotKinds

HALVES = {(layer, part): size for layer in range(3) for part, size in (("attn", 10 + layer), ("ffn", 40))}
HEAD = {(3, "head.0"): 11, (3, "head.1"): 39, (3, "head.2"): 9}
THREE = {(layer, part): size for layer in range(2) for part, size in (("a", 30), ("b", 10), ("c", 20))}


def test_a_kind_is_a_size_class_and_slices_of_the_head_take_turns_in_them() -> None:
    kinds = SlotKinds.by_size(HALVES | HEAD)
    assert kinds.names == ("attn", "ffn")
    assert list(kinds.of.values()) == [*["attn", "ffn"] * 4, "attn"]
    assert kinds.largest(HALVES | HEAD) == {"attn": 12, "ffn": 40}
    assert SlotKinds.by_order(HALVES | HEAD) == kinds


@pytest.mark.parametrize(
    ("sizes", "names"), [(THREE, ("b", "c", "a")), ({(0, "block"): 5, (1, "block"): 7}, ("block",))]
)
def test_there_are_as_many_kinds_as_a_layer_has_parts(
    sizes: dict[tuple[int, str], int], names: tuple[str, ...]
) -> None:
    kinds = SlotKinds.by_size(sizes)
    assert kinds.names == names
    assert all(kind == part for (_, part), kind in kinds.of.items())


@pytest.mark.parametrize(
    ("fewest_slots", "kinds"), [(1, ["a", "a", "a"]), (2, ["a", "c", "c"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])]
)
def test_where_there_are_fewer_slots_than_kinds_a_group_uses_a_larger_slot(fewest_slots: int, kinds: list[str]) -> None:
    found = SlotKinds.by_size(THREE, fewest_slots)
    assert list(found.of.values()) == kinds * 2
    assert all(found.largest(THREE)[found.of[key]] >= size for key, size in THREE.items())


@pytest.mark.parametrize(
    ("names", "slots", "counts"),
    [
        (("attn", "ffn"), 1, [0, 1]),
        (("attn", "ffn"), 4, [2, 2]),
        (("attn", "ffn"), 5, [2, 3]),
        (("ffn",), 3, [3]),
        (("b", "c", "a"), 8, [2, 2, 4]),
    ],
)
def test_every_kind_has_an_equal_share_and_what_is_left_over_is_large(
    names: tuple[str, ...], slots: int, counts: list[int]
) -> None:
    assert SlotKinds(names, {}).counts(slots) == dict(zip(names, counts, strict=True))
