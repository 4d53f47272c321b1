"""What `config.json` says of rotary embedding, in the spelling of transformers 4 and in that of transformers 5."""

import math

from pipeline.models.json_object import MAX_COUNT, JsonObject
from pipeline.models.ropes import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ProportionalScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from pipeline.models.supported import unsupported

FULL, SLIDING = "full_attention", "sliding_attention"
OF_ORIGINAL = ("llama3", "yarn", "longrope")
ORIGINAL, SHARE, LOCAL_BASE = "original_max_position_embeddings", "partial_rotary_factor", "rope_local_base_freq"


def read_rope(settings: JsonObject, head_dim: int, kind: str | None = None, *, is_partial: bool = False) -> Rope:
    """That of all layers, or of those of a `kind` where a family has one for each.

    The precedence is that of transformers: `rope_scaling`, else `rope_parameters`, else top level. Where `is_partial`,
    only a share of the channels may turn. Raises `ConfigError` for what is not supported.
    """
    rope = _section(settings) if kind is None else _section_of(settings, kind)
    place = rope if rope.get(SHARE) is not None else settings
    share = place.positive(SHARE, default=1.0)
    is_proportional = rope.text(_type_key(rope), "default") == "proportional"
    if share > 1 or (share != 1 and not is_partial and not is_proportional):
        raise unsupported(place, SHARE)
    channels = head_dim if is_proportional else int(head_dim * share)
    if channels < 2 or channels % 2:
        need = f"a share of the {head_dim} channels of a head that is a whole number of pairs"
        raise place.error(SHARE, need, share)
    base = LOCAL_BASE if kind == SLIDING and settings.get(LOCAL_BASE) is not None else "rope_theta"
    theta = rope.positive("rope_theta", default=settings.positive(base, default=10000.0))
    if is_proportional:
        scaling: RopeScaling | None = ProportionalScaling(share=share, factor=rope.positive("factor", default=1.0))
    else:
        original = _original(settings, rope) if kind is None else rope.optional_count(ORIGINAL)
        scaling = _read_scaling(rope, original, channels, settings.count("max_position_embeddings"))
    return Rope(theta=theta, scaling=scaling, channels=channels)


def _section(settings: JsonObject) -> JsonObject:
    rope = settings.section("rope_scaling") or settings.section("rope_parameters")
    for key in (FULL, SLIDING):
        if rope.get(key) is not None:
            raise unsupported(rope, key)
    return rope


def _section_of(settings: JsonObject, kind: str) -> JsonObject:
    """transformers 5 has an object for each kind; before, `rope_scaling` was that of full attention."""
    scaling, parameters = settings.section("rope_scaling"), settings.section("rope_parameters")
    if parameters and not {FULL, SLIDING} & parameters.values.keys():
        raise settings.error("rope_parameters", f"an object for {FULL} and one for {SLIDING}", parameters.values)
    rope = parameters.section(kind)
    return scaling.with_absent(rope.values) if kind == FULL and scaling else rope


def read_query_growth(settings: JsonObject) -> tuple[float, int]:
    """By how much queries grow with the position, and the context within which they do not. Raises `ConfigError`."""
    rope = _section(settings)
    original = _original(settings, rope) or settings.count("max_position_embeddings")
    return float(rope.number("llama_4_scaling_beta")), original


def read_scale_growth(settings: JsonObject) -> float:
    """By how much DeepSeek's scores grow where the context is stretched, beside what sines and cosines grow by."""
    rope = _section(settings)
    if rope.text(_type_key(rope), "default") == "default" or not rope.get("mscale_all_dim"):
        return 1.0
    return _magnitude(rope.positive("factor"), rope.positive("mscale_all_dim")) ** 2


def _original(settings: JsonObject, rope: JsonObject) -> int | None:
    """The context before it was stretched; of scalings that depend on it top level speaks first.

    It does not where each kind of layer has an object of its own.
    """
    speaks = rope.text(_type_key(rope), "default") in OF_ORIGINAL and settings.get(ORIGINAL) is not None
    return (settings if speaks else rope).optional_count(ORIGINAL)


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


def _type_key(rope: JsonObject) -> str:
    return rope.first("rope_type", "type")


def _read_scaling(rope: JsonObject, original: int | None, channels: int, max_positions: int) -> RopeScaling | None:
    key = _type_key(rope)
    original = original or max_positions
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
            return _read_longrope(rope, original, max_positions, channels)
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


def _read_longrope(rope: JsonObject, original: int, max_positions: int, channels: int) -> LongScaling:
    """The `factor` counts for the attention factor only; one that is not stated is the ratio of the two contexts."""
    factor = rope.positive("factor", default=max_positions / original)
    if original == 1:
        raise rope.error(ORIGINAL, "a whole number from 2", original)
    implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongScaling(
        attention_factor=rope.positive("attention_factor", default=implied),
        short_factors=rope.positives("short_factor", channels // 2),
        long_factors=rope.positives("long_factor", channels // 2),
        original_max_positions=original,
    )
