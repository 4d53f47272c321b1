"""What config.json says about experts, checked: families put them together from that."""

from pipeline.models.feed_forwards import Experts, FeedForward, Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_activation
from pipeline.models.layers import Layer

ANY = "any"
"""An `expert_dtype` that no file says: the first ones of DeepSeek-V4 name none, and have experts in FP4 or in FP8."""
SHARED_SIZE = "shared_expert_intermediate_size"
ABSENT = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
"""What Qwen's families assume of the keys that `read_sparse_experts` reads."""


def read_experts(
    settings: JsonObject, *, routing: Routing, size: str = "moe_intermediate_size", shared_size: str | None = None
) -> Experts:
    """The experts of a layer, whose channels are stated under the key `size`.

    With a `shared_size`, which is another key, there is a shared expert behind a gate. Raises `ConfigError` for numbers
    that do not go together.
    """
    count, activation = settings.count(count_key(settings)), read_activation(settings)
    return Experts(
        count=count,
        chosen=settings.count("num_experts_per_tok", at_most=count),
        routing=routing,
        expert=FeedForward(size=settings.count(size), activation=activation),
        shared=None if shared_size is None else FeedForward(size=settings.count(shared_size), activation=activation),
        shared_gated=shared_size is not None,
    )


def count_key(settings: JsonObject) -> str:
    """The key that says how many experts a layer has: transformers saves one or the other, published files do, too."""
    return settings.first("num_local_experts", "num_experts")


def read_sparse_experts(settings: JsonObject, count: int, shared_size: str | None = None) -> list[Experts | None]:
    """The experts of so many layers, as Qwen's families state them; None for one that has a feed-forward of its own.

    Each `decoder_sparse_step`th layer has experts but for `mlp_only_layers`, where there are any.
    """
    step, dense = settings.count("decoder_sparse_step"), settings.indices("mlp_only_layers")
    sparse = [index not in dense and (index + 1) % step == 0 for index in range(count)]
    if not any(sparse) or settings.index(count_key(settings)) == 0:
        return [None] * count
    routing = Routing(normalized=settings.flag("norm_topk_prob"))
    experts = read_experts(settings, routing=routing, shared_size=shared_size)
    return [experts if one else None for one in sparse]


def read_grouped_experts(settings: JsonObject) -> Experts:
    """Experts as DeepSeek-V3 has them (arXiv 2412.19437): chosen from groups, beside one that every row uses.

    Raises `ConfigError` for numbers that do not go together.
    """
    routing = _read_grouped_routing(settings)
    count, size = settings.count("n_routed_experts"), settings.count("moe_intermediate_size")
    function = read_activation(settings)
    return Experts(
        count=count,
        chosen=settings.count("num_experts_per_tok", at_most=count // routing.groups * routing.kept),
        routing=routing,
        expert=FeedForward(size=size, activation=function),
        shared=FeedForward(size=size * settings.count("n_shared_experts"), activation=function),
        shared_module="mlp.shared_experts",
    )


def behind_dense(settings: JsonObject, dense: Layer, routed: Layer, count: int) -> tuple[Layer, ...]:
    """So many layers, of which the first ones are dense, as many as `first_k_dense_replace` says."""
    first = min(settings.index("first_k_dense_replace"), count)
    return (dense,) * first + (routed,) * (count - first)


def _read_grouped_routing(settings: JsonObject) -> Routing:
    count, groups = settings.count("n_routed_experts"), settings.count("n_group")
    if count % groups or count < 2 * groups:
        raise settings.error(
            "n_group", f"a divisor of n_routed_experts = {count}, with 2 or more in each group", groups
        )
    return Routing(
        scores="sigmoid",
        normalized=settings.flag("norm_topk_prob"),
        wide=True,
        choice_bias=True,
        groups=groups,
        kept=settings.count("topk_group", at_most=groups),
        scale=settings.positive("routed_scaling_factor"),
    )
