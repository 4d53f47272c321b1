"""What config.json says about layers, checked: families put them together from that."""

from collections.abc import Iterable

from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Attention, FeedForward, Layer
from pipeline.models.rope_settings import read_rope
from pipeline.models.supported import unsupported

FULL, SLIDING = "full_attention", "sliding_attention"


def read_layer(settings: JsonObject, *, mixer: Attention, biases: Iterable[str] = ()) -> Layer:
    """A layer of the sizes that config.json states. Raises `ConfigError` for numbers that do not go together."""
    return Layer(
        hidden_size=settings.count("hidden_size"),
        mixer=mixer,
        feed_forward=FeedForward(size=settings.count("intermediate_size")),
        biases=frozenset(biases),
        norm_epsilon=read_norm_epsilon(settings),
    )


def read_attention(settings: JsonObject) -> Attention:
    """Plain attention of the sizes and the rotary embedding that config.json states. Raises as `read_layer`."""
    heads = settings.count("num_attention_heads")
    head_dim = _head_dim(settings, heads)
    return Attention(
        heads=heads,
        kv_heads=_kv_heads(settings, heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=read_rope(settings, head_dim),
    )


def read_norm_epsilon(settings: JsonObject) -> float:
    """What all norms add before they take the root."""
    return settings.positive("rms_norm_eps", default=1e-6)


def read_windows(settings: JsonObject, layers: int) -> list[int | None]:
    """The window of each layer, None for full attention.

    `layer_types` states the kind of each; else the layers from `max_window_layers` on have the window.
    """
    window, full_layers = None, layers
    if settings.flag("use_sliding_window"):
        window, first = settings.optional_count("sliding_window"), settings.index("max_window_layers")
        full_layers = min(first, layers) if window else layers
    kinds = settings.get("layer_types") or [FULL] * full_layers + [SLIDING] * (layers - full_layers)
    known = [FULL, SLIDING] if window else [FULL]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise unsupported(settings, "layer_types")
    return [window if kind == SLIDING else None for kind in kinds]


def _kv_heads(settings: JsonObject, heads: int) -> int:
    kv_heads = settings.optional_count("num_key_value_heads") or heads
    if heads % kv_heads:
        raise settings.error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)
    return kv_heads


def _head_dim(settings: JsonObject, heads: int) -> int:
    hidden_size = settings.count("hidden_size")
    head_dim = settings.optional_count("head_dim")
    if head_dim is None and hidden_size % heads:
        raise settings.error("hidden_size", f"a multiple of num_attention_heads = {heads}, or a head_dim", hidden_size)
    head_dim = head_dim or hidden_size // heads
    if head_dim % 2:
        raise settings.error("head_dim", "an even number, since rotary embedding turns pairs", head_dim)
    return head_dim
