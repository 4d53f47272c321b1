"""What config.json says about layers, checked: families put them together from that."""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.models.feed_forwards import FEED_FORWARD_MATRICES, Activation, Experts, FeedForward
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import ATTENTION_MATRICES, Attention, DeltaNet, Layer
from pipeline.models.rope_settings import FULL, SLIDING, read_rope
from pipeline.models.supported import unsupported

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}
"""By the names that config.json has for them."""


def read_layer(
    settings: JsonObject,
    *,
    mixer: Attention | DeltaNet,
    biases: Iterable[str] | None = None,
    activation: str = "hidden_act",
    is_gated: bool = True,
    is_fused: bool = False,
    experts: Experts | None = None,
) -> Layer:
    """A layer of the sizes that config.json states; which activation it has is said under the key `activation`.

    It has `experts`, where they are given, in place of a feed-forward of its own.

    The matrices with `biases` are those that attention_bias and mlp_bias ask for, unless they are named here. Raises
    `ConfigError` for numbers that do not go together.
    """
    function = read_activation(settings, activation)
    return Layer(
        hidden_size=settings.count("hidden_size"),
        mixer=mixer,
        feed_forward=experts
        or FeedForward(size=settings.count("intermediate_size"), activation=function, gated=is_gated, fused=is_fused),
        biases=frozenset(_biases(settings) if biases is None else biases),
        norm_epsilon=read_norm_epsilon(settings),
    )


def read_activation(settings: JsonObject, key: str = "hidden_act") -> Activation:
    """The activation that is said under this key."""
    if (function := settings.text(key, "silu" if key == "hidden_act" else "")) not in ACTIVATIONS:
        raise unsupported(settings, key)
    return ACTIVATIONS[function]


def read_attention(settings: JsonObject, kind: str | None = None, *, is_partial: bool = False) -> Attention:
    """Plain attention of the sizes and the rotary embedding that config.json states, as `read_rope` takes them.

    Raises as `read_layer`.
    """
    heads = settings.count("num_attention_heads")
    head_dim = _head_dim(settings, heads)
    return Attention(
        heads=heads,
        kv_heads=_kv_heads(settings, heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=read_rope(settings, head_dim, kind, is_partial=is_partial),
    )


def read_norm_epsilon(settings: JsonObject) -> float:
    """What all norms add before they take the root."""
    return settings.positive("rms_norm_eps", default=1e-6)


def read_kinds(settings: JsonObject, assumed: Sequence[str], known: Iterable[str]) -> list[str]:
    """The kind of each layer, as `layer_types` states it, else as `assumed`.

    Raises ConfigError for another number of layers, and for kinds that are not `known`.
    """
    kinds = settings.get("layer_types") or [*assumed]
    if not isinstance(kinds, list) or len(kinds) != len(assumed) or not {*map(str, kinds)} <= {*known}:
        raise unsupported(settings, "layer_types")
    return kinds


def read_windows(settings: JsonObject, window: int | None, assumed: Sequence[str]) -> list[int | None]:
    """The window of each layer, None for full attention; there is none to state where `window` is None."""
    kinds = read_kinds(settings, assumed, [FULL, SLIDING] if window else [FULL])
    return [window if kind == SLIDING else None for kind in kinds]


def read_late_windows(settings: JsonObject, layers: int) -> list[int | None]:
    """The same, where `use_sliding_window` gives the layers from `max_window_layers` on a window, else none."""
    window, full_layers = None, layers
    if settings.flag("use_sliding_window"):
        window, first = settings.optional_count("sliding_window"), settings.index("max_window_layers")
        full_layers = min(first, layers) if window else layers
    return read_windows(settings, window, [FULL] * full_layers + [SLIDING] * (layers - full_layers))


def _biases(settings: JsonObject) -> tuple[str, ...]:
    """The matrices that have a bias, of all those of a half or of none."""
    attention = ATTENTION_MATRICES if settings.flag("attention_bias") else ()
    return (*attention, *(FEED_FORWARD_MATRICES if settings.flag("mlp_bias") else ()))


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
