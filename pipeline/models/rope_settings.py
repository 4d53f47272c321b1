"""What `config.json` says of rotary embedding, in the spelling of transformers 4 and in that of transformers 5."""

import math

from pipeline.models.json_object import MAX_COUNT, JsonObject
from pipeline.models.ropes import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from pipeline.models.supported import unsupported

ORIGINAL = "original_max_position_embeddings"


def read_rope(settings: JsonObject, head_dim: int) -> Rope:
    """That of all layers, with the precedence of transformers: `rope_scaling`, else `rope_parameters`, else top level.

    Raises `ConfigError` for what is not supported.
    """
    rope = settings.section("rope_scaling") or settings.section("rope_parameters")
    for key in ("full_attention", "sliding_attention"):
        if rope.get(key) is not None:
            raise unsupported(rope, key)
    for place in (settings, rope):
        if place.positive("partial_rotary_factor", default=1.0) != 1.0:
            raise unsupported(place, "partial_rotary_factor")
    theta = rope.positive("rope_theta", default=settings.positive("rope_theta", default=10000.0))
    scaling = _read_scaling(settings, rope, head_dim, settings.count("max_position_embeddings"))
    return Rope(theta=theta, scaling=scaling, channels=head_dim)


def stretched(max_positions: int, scaling: RopeScaling | None) -> int:
    """How many positions a model is made for whose config.json says `max_positions`.

    Of the older kinds of scaling that is the original context, and Qwen's cards add YaRN without changing it.
    """
    most: float = max_positions
    match scaling:
        case LinearScaling() | DynamicScaling():
            most = max_positions * scaling.factor
        case YarnScaling():
            most = scaling.original_max_positions * scaling.factor
    return max(max_positions, int(min(most, MAX_COUNT)))


def _read_scaling(settings: JsonObject, rope: JsonObject, head_dim: int, max_positions: int) -> RopeScaling | None:
    key = "rope_type" if rope.get("rope_type") is not None else "type"
    original = settings.optional_count(ORIGINAL) or rope.optional_count(ORIGINAL) or max_positions
    match rope.text(key, "default"):
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=rope.positive("factor"))
        case "llama3":
            return _read_llama3(rope, original)
        case "yarn":
            return _read_yarn(rope, original, max_positions)
        case "dynamic":
            return DynamicScaling(factor=rope.positive("factor"), original_max_positions=max_positions)
        case "longrope":
            return _read_longrope(rope, original, max_positions, head_dim)
        case _:
            raise unsupported(rope, key)


def _read_llama3(rope: JsonObject, original: int) -> Llama3Scaling:
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        raise rope.error("low_freq_factor", f"a number below high_freq_factor = {high}", low)
    return Llama3Scaling(
        factor=rope.positive("factor"),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_max_positions=original,
    )


def _read_yarn(rope: JsonObject, original: int, max_positions: int) -> YarnScaling:
    """A `factor` that is not stated is the ratio of the two contexts, if they differ."""
    factor = rope.positive("factor", default=max_positions / original if max_positions != original else None)
    fast, slow = rope.positive("beta_fast", default=32.0), rope.positive("beta_slow", default=1.0)
    if slow > fast:
        raise rope.error("beta_slow", f"a number not above beta_fast = {fast}", slow)
    scales = [rope.positive(key) for key in ("mscale", "mscale_all_dim") if rope.get(key)]
    whole, part = scales if len(scales) == 2 else (1.0, 0.0)
    implied = _magnitude(factor, whole) / _magnitude(factor, part)
    return YarnScaling(
        factor=factor,
        attention_factor=rope.positive("attention_factor", default=implied),
        fast_turns=fast,
        slow_turns=slow,
        truncate=rope.with_absent({"truncate": True}).flag("truncate"),  # a null is false in transformers
        original_max_positions=original,
    )


def _magnitude(factor: float, scale: float) -> float:
    """Equation 22 of arXiv 2309.00071, of which DeepSeek-V2 (arXiv 2405.04434) takes the ratio of two."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_longrope(rope: JsonObject, original: int, max_positions: int, head_dim: int) -> LongScaling:
    """The `factor` counts for the attention factor only; one that is not stated is the ratio of the two contexts."""
    factor = rope.positive("factor", default=max_positions / original)
    if original == 1:
        raise rope.error(ORIGINAL, "a whole number from 2", original)
    implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongScaling(
        attention_factor=rope.positive("attention_factor", default=implied),
        short_factors=rope.positives("short_factor", head_dim // 2),
        long_factors=rope.positives("long_factor", head_dim // 2),
        original_max_positions=original,
    )
