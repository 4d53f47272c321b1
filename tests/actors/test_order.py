"""What the order of a pass says about its groups."""

from actors.core.order import halves, layer_parts

DECODER = [(0, "attn"), (0, "ffn"), (1, "attn"), (1, "ffn"), (2, "head.0"), (2, "head.1")]


def test_what_follows_the_layers_counts_as_one_more_last_part_each() -> None:
    assert layer_parts(DECODER) == ("attn", "ffn")
    assert halves(DECODER) == [(0, "attn"), (0, "ffn"), (1, "attn"), (1, "ffn"), (2, "ffn"), (3, "ffn")]


def test_layers_may_begin_anywhere_and_have_any_parts() -> None:
    order = [(layer, part) for layer in (4, 7) for part in ("mix", "gate", "out")]
    assert layer_parts(order) == ("mix", "gate", "out")
    assert halves(order) == [(layer, part) for layer in (0, 1) for part in ("mix", "gate", "out")]
