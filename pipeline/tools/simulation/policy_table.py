"""The table of policies, as people read it."""

from collections.abc import Mapping, Sequence

from pipeline.system.table import aligned
from pipeline.tools.trace.overlap import Overlap


def policy_table(rows: Sequence[Overlap], beside: Mapping[tuple[str, str], Sequence[str]] | None = None) -> str:
    """One line per row under two lines of headings, name and unit; text to the left, numbers to the right.

    `beside` holds more columns, to be set beside the milliseconds per layer: by name and unit, a cell for each row.
    """
    columns: dict[tuple[str, str], Sequence[str]] = {
        ("policy", ""): [row.policy for row in rows],
        ("total", "s"): [f"{row.total_ms / 1000:.3f}" for row in rows],
        ("per layer", "ms"): [_ms(row.ms_per_layer) for row in rows],
        **(beside or {}),
        ("total /", "ideal"): [f"{row.ratio_to_ideal:.3f}" for row in rows],
        ("gap in", "layer ms"): [_ms(row.gap_in_layer_ms) for row in rows],
        ("between", "layers ms"): [_ms(row.gap_between_layers_ms) for row in rows],
        ("L0-L1", "ms"): [_ms(row.l0_l1_ms) for row in rows],
        ("L0-L4", "ms"): [_ms(row.l0_l4_ms) for row in rows],
        ("asks at", "attn/ffn"): [_slashed(row.groups_requested, 1, 1) for row in rows],
        ("link busy %", "attn/ffn/all"): [_slashed(row.link_use, 100, 0) for row in rows],
        ("host", "blocked ms"): [_ms(row.host_blocked_ms) for row in rows],
        ("groups", "on device"): [str(row.groups_on_device_peak) for row in rows],
        ("depth", "layers"): [str(row.depth_used) for row in rows],
    }
    return aligned(columns)


def _ms(milliseconds: float) -> str:
    """Four digits or so; a rounding error is no time at all."""
    return f"{milliseconds + 0.0:.{1 if milliseconds >= 10 else 2}f}"


def _slashed(values: Mapping[str, float], factor: float, digits: int) -> str:
    texts = (f"{value * factor:.{digits}f}" for value in values.values())
    return "/".join(text.removesuffix(".0") for text in texts)
