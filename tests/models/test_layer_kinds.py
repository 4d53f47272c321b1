"""Every kind of layer against that of transformers: same weights, same numbers, and each flag matters."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from support.attention_kinds import attention
from support.kv_blocks import empty_blocks, rows_of

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import ATTN, FFN
from pipeline.models import decoder
from pipeline.models.feed_forwards import FeedForward
from pipeline.models.layers import Attention, Layer, Norms
from pipeline.models.ropes import ProportionalScaling, Rope
from pipeline.models.rotary import rotary

HIDDEN, SIZE, TOKENS, PROMPT = 40, 56, 41, 23
AROUND = Norms(
    after_mixer="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
)


@dataclass(frozen=True)
class Kind:
    """A layer as the package `model` of transformers has it with this config, and as we describe it."""

    model: str
    name: str
    config: dict[str, Any]
    mixer: Attention
    rest: dict[str, Any] = field(default_factory=dict)
    layer_type: str = "full_attention"

    @property
    def layer(self) -> Layer:
        plain = {"hidden_size": HIDDEN, "feed_forward": FeedForward(size=SIZE), "norm_epsilon": 1e-6}
        return Layer(**{**plain, "biases": frozenset(), "mixer": self.mixer, **self.rest})


def turned(channels: int, theta: float = 1e4, **changes: Any) -> Rope:
    return Rope(theta=theta, channels=channels, **changes)


KINDS = {
    "gemma2": Kind(
        "gemma2",
        "Gemma2",
        {"query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0, "sliding_window": 7},
        attention(4, 2, 12, scale=9.0**-0.5, softcap=2.0, window=7),
        {"norms": AROUND, "norm_style": "plus_one", "feed_forward": FeedForward(size=SIZE, activation="gelu_tanh")},
        "sliding_attention",
    ),
    "gemma4": Kind(
        "gemma4",
        "Gemma4Text",
        {
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "rope_theta": 5e3, "partial_rotary_factor": 0.25},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        attention(
            *(4, 1, 16),
            scale=1.0,
            values_are_keys=True,
            value_norm=True,
            query_key_norms="heads",
            rope=turned(16, 5e3, scaling=ProportionalScaling(share=0.25, factor=1.0)),
        ),
        {
            "norms": AROUND,
            "norm_style": "wide",
            "scalar": True,
            "feed_forward": FeedForward(size=SIZE, activation="gelu_tanh"),
        },
    ),
    "olmo2": Kind(
        "olmo2",
        "Olmo2",
        {"head_dim": 10},
        attention(4, 2, 10, query_key_norms="projection"),
        {
            "norms": Norms(
                before_mixer=None,
                after_mixer="post_attention_layernorm",
                before_feed_forward=None,
                after_feed_forward="post_feedforward_layernorm",
            ),
            "norm_style": "wide",
        },
    ),
    "glm4": Kind(
        "glm4",
        "Glm4",
        {"attention_bias": True, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        attention(4, 2, 12, rope=turned(6, interleaved=True)),
        {
            "norms": Norms(after_mixer="post_self_attn_layernorm", after_feed_forward="post_mlp_layernorm"),
            "biases": frozenset({"q", "k", "v"}),
            "feed_forward": FeedForward(size=SIZE, fused=True),
        },
    ),
    "phi3": Kind(
        "phi3",
        "Phi3",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "pad_token_id": 0},
        attention(4, 2, 12, fused=True, rope=turned(6)),
        {"feed_forward": FeedForward(size=SIZE, fused=True)},
    ),
    "granite": Kind(
        "granite",
        "Granite",
        {"residual_multiplier": 0.3, "attention_multiplier": 0.5},
        attention(4, 2, 12, scale=0.5),
        {"residual_multiplier": 0.3},
    ),
    "qwen3_5": Kind(
        "qwen3_5",
        "Qwen3_5",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [1, 1, 1],
            }
        },
        attention(4, 2, 12, gated=True, query_key_norms="heads", rope=turned(6)),
        {"norm_style": "plus_one"},
    ),
    "arcee": Kind(
        "arcee",
        "Arcee",
        {"hidden_act": "relu2", "mlp_bias": True},
        attention(4, 2, 12),
        {
            "feed_forward": FeedForward(size=SIZE, activation="relu2", gated=False),
            "biases": frozenset({"up", "down"}),
        },
    ),
    "ministral3": Kind(
        "ministral3",
        "Ministral3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "llama_4_scaling_beta": 0.4,
                "original_max_position_embeddings": 8,
            }
        },
        attention(4, 2, 12, rope=turned(12, query_growth=(0.4, 8))),
    ),
    "smollm3 without rope": Kind(
        "smollm3",
        "SmolLM3",
        {"no_rope_layers": [0], "pad_token_id": 0},
        attention(4, 2, 12, rope=None),
    ),
}


def reference(kind: Kind) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Random weights of the layer of transformers by name, what it gets [T, D], and what it gives."""
    module = importlib.import_module(f"transformers.models.{kind.model}.modeling_{kind.model}")
    configuration = importlib.import_module(f"transformers.models.{kind.model}.configuration_{kind.model}")
    text = "Text" if kind.model in ("qwen3_5", "gemma4") else ""
    shape = {"hidden_size": HIDDEN, "intermediate_size": SIZE, "num_attention_heads": 4, "num_key_value_heads": 2}
    types = {} if kind.model in ("granite", "arcee", "phi3", "glm4") else {"layer_types": [kind.layer_type]}
    named = {"num_hidden_layers": 1, "head_dim": 12, "rms_norm_eps": 1e-6, "vocab_size": 9, **types}
    made = getattr(configuration, f"{kind.name.removesuffix('Text')}{text}Config")
    config = made(**{**shape, **named, **kind.config})
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    layer = getattr(module, f"{kind.name}DecoderLayer")(config, layer_idx=0).eval()
    for name, tensor in {**dict(layer.named_parameters()), **dict(layer.named_buffers())}.items():
        tensor.data.normal_(std=0.3)
        if "norm" in name or "scalar" in name:
            tensor.data.add_(1.0)
    hidden_TD, positions = torch.randn(TOKENS, HIDDEN), torch.arange(TOKENS).unsqueeze(0)
    turns: Any = getattr(module, f"{kind.name}{'Text' if kind.model == 'qwen3_5' else ''}RotaryEmbedding")(config)
    many = positions.expand(3, 1, -1) if kind.model == "qwen3_5" else positions
    by_type = (kind.layer_type,) if kind.model == "gemma4" else ()
    ahead = torch.arange(TOKENS) - torch.arange(TOKENS).unsqueeze(1)
    hidden = (ahead > 0) | (ahead <= -(kind.mixer.window or TOKENS))
    mask = torch.zeros(1, 1, TOKENS, TOKENS).masked_fill_(hidden, -torch.inf)
    given = {"shared_kv_states": {}} if kind.model == "gemma4" else {}
    embeddings = turns(hidden_TD, many, *by_type)
    given |= {"position_embeddings": embeddings, "attention_mask": mask, "position_ids": positions}
    out = layer(hidden_TD.unsqueeze(0).clone(), **given)
    return dict(layer.state_dict()), hidden_TD, (out[0] if isinstance(out, tuple) else out).squeeze(0)


def computed(layer: Layer, tensors: dict[str, torch.Tensor], hidden_TD: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """What our layer gives, of a prompt in passes that begin at `cuts`, and answers token by token behind it."""
    kind = layer.mixer
    assert isinstance(kind, Attention)
    groups = {}
    for part, specs in layer.specs("layer").items():
        named = {spec.short: tensors[spec.name.removeprefix("layer.")] for spec in specs}
        for spec in specs:
            assert named[spec.short].shape == spec.shape
        groups[part] = Weights(named, {short: DenseMatrix(one) for short, one in named.items() if one.ndim == 2})
    kv, blocks_B = empty_blocks(TOKENS, kind.kv_heads, kind.head_dim, hidden_TD.dtype)
    passes = []
    starts = [*cuts, *range(PROMPT, TOKENS)]
    for start, end in zip(starts, [*starts[1:], TOKENS], strict=True):
        rows, positions = rows_of(blocks_B, start, end - start, PROMPT), torch.arange(start, end)
        turns = {} if kind.rope is None else {kind.rope: rotary(kind.rope, positions)}
        half_TD = decoder.attention_half(layer, groups[ATTN], hidden_TD[start:end].clone(), kv, rows, turns)
        passes.append(decoder.ffn_half(layer, groups[FFN], half_TD, by_formula=True))
    return torch.cat(passes)


def changed(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """The layer with each of what makes it special taken away."""
    kind = layer.mixer
    assert isinstance(kind, Attention)
    usual = attention(kind.heads, kind.kv_heads, kind.head_dim)
    for one in fields(kind):
        if getattr(kind, one.name) != getattr(usual, one.name):
            yield one.name, replace(layer, mixer=replace(kind, **{one.name: getattr(usual, one.name)}))
    for one in fields(kind.rope) if kind.rope else ():
        if getattr(kind.rope, one.name) != getattr(usual.rope, one.name):
            rope = replace(kind.rope, **{one.name: getattr(usual.rope, one.name)})
            yield one.name, replace(layer, mixer=replace(kind, rope=rope))
    for one in fields(layer.feed_forward):
        if getattr(layer.feed_forward, one.name) != getattr(FeedForward(size=SIZE), one.name):
            plain = {one.name: getattr(FeedForward(size=SIZE), one.name)}
            yield one.name, replace(layer, feed_forward=replace(layer.feed_forward, **plain))
    for name, usually in (("residual_multiplier", 1.0), ("scalar", False), ("biases", frozenset()), ("norms", Norms())):
        if getattr(layer, name) != usually:
            yield name, replace(layer, **{name: usually})
    if layer.norm_style == "plus_one":
        yield "norm_style", replace(layer, norm_style="wide")


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_a_layer_gives_what_that_of_transformers_gives_and_each_flag_matters(name: str) -> None:
    layer = KINDS[name].layer
    tensors, hidden_TD, expected = reference(KINDS[name])
    ours = computed(layer, tensors, hidden_TD, [0])
    torch.testing.assert_close(ours, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
    names = {spec.name.removeprefix("layer.") for specs in layer.specs("layer").values() for spec in specs}
    assert names == tensors.keys()
    for flag, other in changed(layer):
        try:
            gives = computed(other, tensors, hidden_TD, [0])
        except (KeyError, AssertionError):  # it has other tensors
            continue
        assert (gives - expected).abs().max() > 1e-3 * expected.abs().max(), flag


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_the_bits_of_a_token_do_not_depend_on_where_its_prompt_is_cut(name: str, dtype: torch.dtype) -> None:
    layer = KINDS[name].layer
    tensors, hidden_TD, _ = reference(KINDS[name])
    tensors, hidden_TD = {key: one.to(dtype) for key, one in tensors.items()}, hidden_TD.to(dtype)
    whole = computed(layer, tensors, hidden_TD, [0])
    for cuts in ([0, 2, 16], [0, 9, 19]):
        assert torch.equal(computed(layer, tensors, hidden_TD, cuts), whole), cuts
