"""SmolLM3: Llama's layers, every fourth of which does not turn its queries and keys."""

from dataclasses import replace

from pipeline.models.families.family import Family
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_attention, read_layer, read_windows
from pipeline.models.layers import Layer
from pipeline.models.rope_settings import FULL, SLIDING


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """With and without rotary embedding, and then perhaps with a window."""
    attention = read_attention(settings)
    turns, window = _turns(settings, count), settings.optional_count("sliding_window")
    has_windows = settings.flag("use_sliding_window") and window is not None
    assumed = [SLIDING if has_windows and not turn else FULL for turn in turns]
    windows = read_windows(settings, window, assumed)
    mixers = [
        replace(attention, rope=attention.rope if turn else None, window=window)
        for turn, window in zip(turns, windows, strict=True)
    ]
    return tuple(read_layer(settings, mixer=mixer) for mixer in mixers)


def _turns(settings: JsonObject, count: int) -> list[bool]:
    """Despite its name `no_rope_layers` has a 1 for a layer that turns."""
    stated = settings.get("no_rope_layers")
    if stated is None:
        interval = settings.count("no_rope_layer_interval")
        return [(index + 1) % interval != 0 for index in range(count)]
    if not isinstance(stated, list) or len(stated) != count or any(one not in (0, 1) for one in stated):
        raise settings.error("no_rope_layers", f"{count} items, each 0 or 1", stated)
    return [one == 1 for one in stated]


FAMILY = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    absent={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    follows=frozenset({"attention_bias", "mlp_bias", "layer_types"}),
    layers=layers,
)
