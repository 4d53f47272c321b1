"""DeepSeek-V4: attention to a window and compressed entries, several residual streams, experts that tokens choose."""

from dataclasses import replace

from pipeline.models.compressed import CompressedAttention, Compressor
from pipeline.models.expert_settings import ANY
from pipeline.models.families.deepseek_v3 import refuse_others
from pipeline.models.families.family import Family
from pipeline.models.feed_forwards import Clamp, Experts, FeedForward, Routing
from pipeline.models.json_object import JsonObject
from pipeline.models.layer_settings import read_activation, read_kinds, read_layer, read_norm_epsilon
from pipeline.models.layers import Layer, Norms
from pipeline.models.outside import Outside
from pipeline.models.rope_settings import SLIDING, read_rope
from pipeline.models.ropes import Rope, YarnScaling
from pipeline.models.streams import Streams
from pipeline.models.supported import unsupported

SPARSE, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
KINDS = {0: SLIDING, 4: SPARSE, 128: HEAVY}
"""By the rates at which published files say that layers compress; others have a list of kinds."""
RATES = {SPARSE: "compress_rate_csa", HEAVY: "compress_rate_hca"}
BY_TOKEN, BY_ROUTER = "hash_moe", "moe"
COMPUTED = {"scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True}
"""What published files state of experts, and what alone is computed."""
BLOCK_POSITIONS = 16
"""A window ends with a KV block, or blocks with a window: what is kept of windows lies in them."""
MAIN, COMPRESS = "main", "compress"
EMBEDDING = ("embed", "embed_tokens")
"""As published files have it, and as transformers saves it."""


def layers(settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """Alike but for what their attention looks at, and for what chooses experts."""
    refuse_others(settings, COMPUTED)
    kinds = _kinds(settings, count)
    mixers = {kind: _attention(settings, kind) for kind in kinds}
    plain = read_layer(settings, mixer=mixers[kinds[0]], experts=_experts(settings), biases=())
    norms = Norms(before_mixer="attn_norm", before_feed_forward="ffn_norm")
    plain = replace(plain, norm_style="wide", norms=norms, streams=_streams(settings))
    experts = {
        by_token: replace(_experts(settings), routing=_routing(settings, by_token)) for by_token in (False, True)
    }
    return tuple(
        replace(plain, mixer=mixers[kind], feed_forward=experts[chosen == BY_TOKEN])
        for kind, chosen in zip(kinds, _choices(settings, count), strict=True)
    )


def _kinds(settings: JsonObject, count: int) -> list[str]:
    """Return what layers look at: as a list says, as rates do, of which more may follow, or in turns."""
    assumed = [SPARSE if index > 1 and index % 2 else HEAVY for index in range(count)]
    if (rates := settings.get("compress_ratios")) is not None and settings.get("layer_types") is None:
        if not isinstance(rates, list) or len(rates) < count or not {*map(repr, rates)} <= {*map(repr, KINDS)}:
            raise unsupported(settings, "compress_ratios")
        return [KINDS[rate] for rate in rates[:count]]
    return read_kinds(settings, assumed, KINDS.values())


def _choices(settings: JsonObject, count: int) -> list[str]:
    """Return what chooses the experts of layers: of the first ones the tokens do."""
    first = min(settings.index("num_hash_layers"), count)
    stated = settings.get("mlp_layer_types") or [BY_TOKEN] * first + [BY_ROUTER] * (count - first)
    if not isinstance(stated, list) or len(stated) != count or not {*map(str, stated)} <= {BY_TOKEN, BY_ROUTER}:
        raise unsupported(settings, "mlp_layer_types")
    return stated


def _attention(settings: JsonObject, kind: str) -> CompressedAttention:
    heads, head_dim = settings.count("num_attention_heads"), settings.count("head_dim")
    if settings.count("num_key_value_heads") != 1:
        raise unsupported(settings, "num_key_value_heads")
    groups = settings.count("o_groups")
    if heads % groups:
        raise settings.error("o_groups", f"a divisor of num_attention_heads = {heads}", groups)
    plain = CompressedAttention(
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=_rope(settings, head_dim, MAIN if kind == SLIDING else COMPRESS),
        window=settings.count("sliding_window"),
        sinks=True,
        query_rank=settings.count("q_lora_rank"),
        groups=groups,
        output_rank=settings.count("o_lora_rank"),
        norm_epsilon=read_norm_epsilon(settings),
    )
    if kind == SLIDING:
        return plain
    compressor = Compressor(rate=_rate(settings, kind), channels=head_dim, overlap=kind == SPARSE)
    if kind == HEAVY:
        return replace(plain, compressor=compressor)
    index_dim = settings.count("index_head_dim")
    if plain.rope is not None and index_dim < plain.rope.channels:
        raise settings.error("index_head_dim", f"at least qk_rope_head_dim = {plain.rope.channels}", index_dim)
    return replace(
        plain,
        compressor=compressor,
        index=replace(compressor, channels=index_dim),
        index_heads=settings.count("index_n_heads"),
        chosen=settings.count("index_topk"),
    )


def _rate(settings: JsonObject, kind: str) -> int:
    """The number of tokens of which an entry is made."""
    rates = settings.section("compress_rates")
    place, key = (settings, RATES[kind]) if settings.get(RATES[kind]) is not None else (rates, kind)
    rate = place.count(key)
    if rate % BLOCK_POSITIONS and BLOCK_POSITIONS % rate:
        raise place.error(key, f"a divisor or a multiple of the {BLOCK_POSITIONS} positions of a KV block", rate)
    return rate


def _rope(settings: JsonObject, head_dim: int, kind: str) -> Rope:
    """The one of a kind, which transformers 5 has an object for; else `rope_scaling` is that of compressed layers."""
    stated = settings.section(settings.first("rope_scaling", "rope_parameters"))
    share = settings.positive("partial_rotary_factor", default=settings.count("qk_rope_head_dim") / head_dim)
    if {MAIN, COMPRESS} <= stated.values.keys():
        rope = stated.section(kind).with_absent({"partial_rotary_factor": share})
    else:
        theta = settings.positive("rope_theta" if kind == MAIN else "compress_rope_theta")
        said = {} if kind == MAIN else stated.values
        rope = JsonObject("rope_scaling", {**said, "rope_theta": theta, "partial_rotary_factor": share})
    own = settings.replaced("rope_parameters", None).replaced("rope_scaling", dict(rope.values))
    read = read_rope(own, head_dim, is_partial=True)
    if isinstance(read.scaling, YarnScaling) and rope.get("attention_factor") is None:
        read = replace(read, scaling=replace(read.scaling, attention_factor=1.0))
    return replace(read, interleaved=True)


def _experts(settings: JsonObject) -> Experts:
    """Those of all layers, before it is said what chooses them."""
    count, size = settings.count("n_routed_experts"), settings.count("moe_intermediate_size")
    if read_activation(settings) != "silu":
        raise unsupported(settings, "hidden_act")
    if settings.count("n_shared_experts") != 1:
        raise unsupported(settings, "n_shared_experts")
    clamp = Clamp(limit=settings.positive("swiglu_limit"), slope=1.0, offset=0.0)
    expert = FeedForward(size=size, clamp=clamp)
    return Experts(
        count=count,
        chosen=settings.count("num_experts_per_tok", at_most=count),
        routing=Routing(),
        expert=expert,
        shared=expert,
        router="ffn.gate",
        choice_bias="ffn.gate.bias",
        table="ffn.gate.tid2eid",
        module="ffn.experts",
        names=(("gate", "w1"), ("up", "w3"), ("down", "w2")),
        shared_module="ffn.shared_experts",
    )


def _routing(settings: JsonObject, by_token: bool) -> Routing:
    scale = settings.positive("routed_scaling_factor")
    return Routing(scores="root of softplus", choice_bias=not by_token, scale=scale, by_token=by_token)


def _streams(settings: JsonObject) -> Streams:
    rounds, epsilon = settings.count("hc_sinkhorn_iters"), settings.positive("hc_eps")
    return Streams(count=settings.count("hc_mult"), rounds=rounds, epsilon=epsilon)


FAMILY = Family(
    name="deepseek_v4",
    architecture="DeepseekV4ForCausalLM",
    absent={
        "vocab_size": 129280,
        "hidden_size": 4096,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 1024,
        "num_experts_per_tok": 6,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.5,
        "max_position_embeddings": 1048576,
        "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0,
        "compress_rates": {SPARSE: 4, HEAVY: 128},
        "num_hash_layers": 3,
        "expert_dtype": ANY,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "swiglu_limit": 10.0,
        "sliding_window": 128,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    follows=frozenset({"layer_types"}),
    layers=layers,
    outside=lambda settings: Outside(streams=_streams(settings), embedding=EMBEDDING, output="head"),
    prefix="",
)
