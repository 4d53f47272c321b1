"""Every kind of layer with experts against that of transformers: the same experts chosen, the same numbers."""

import importlib
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from support.attention_kinds import attention

from pipeline.formats.dense import DenseMatrix, joined
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import FFN
from pipeline.models import experts
from pipeline.models.families import gemma2, gemma4
from pipeline.models.feed_forwards import Clamp, Experts, FeedForward, Routing
from pipeline.models.layers import Layer
from pipeline.models.ops import rms_norm
from pipeline.models.row_blocks import RowBlocks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import CONFIG_MAPPING

HIDDEN, SIZE, SHARED, COUNT, CHOSEN, TOKENS = 36, 20, 28, 12, 3, 37
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": SIZE,
    "moe_intermediate_size": SIZE,
    "shared_expert_intermediate_size": SHARED,
    "num_experts": COUNT,
    "num_experts_per_tok": CHOSEN,
}
EXPERT = {"count": COUNT, "chosen": CHOSEN, "expert": FeedForward(size=SIZE), "routing": Routing()}
SHARING = {**EXPERT, "shared": FeedForward(size=SHARED), "shared_gated": True}
LEAST_ROWS = RowBlocks(rows=2)
"""As on a CPU: fewer have other bits."""


@dataclass(frozen=True)
class Kind:
    """The block of transformers with this config, and as we describe it."""

    block: str
    experts: Experts
    config: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    def as_layer(self) -> Layer:
        plain = {"hidden_size": HIDDEN, "mixer": attention(2, 2, 2), "biases": frozenset(), "norm_epsilon": 1e-6}
        return Layer(**{**plain, "feed_forward": self.experts, **self.others})


KINDS = {
    "mixtral": Kind("MixtralSparseMoeBlock", Experts(**EXPERT), {"num_local_experts": COUNT}),
    "olmoe": Kind("OlmoeSparseMoeBlock", Experts(**EXPERT), {"norm_topk_prob": True}),
    "qwen3_moe": Kind("Qwen3MoeSparseMoeBlock", Experts(**{**EXPERT, "routing": Routing(normalized=False)})),
    "qwen2_moe": Kind("Qwen2MoeSparseMoeBlock", Experts(**{**SHARING, "routing": Routing(normalized=False)})),
    "qwen3_next": Kind("Qwen3NextSparseMoeBlock", Experts(**SHARING)),
    "qwen3_5_moe_text": Kind("Qwen3_5MoeSparseMoeBlock", Experts(**SHARING)),
    "deepseek_v3": Kind(
        "DeepseekV3MoE",
        Experts(
            **{
                **EXPERT,
                "routing": Routing(scores="sigmoid", choice_bias=True, wide=True, groups=4, kept=2, scale=2.5),
                "shared": FeedForward(size=2 * SIZE),
                "shared_module": "mlp.shared_experts",
            }
        ),
        {
            "n_routed_experts": COUNT,
            "n_shared_experts": 2,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
        },
    ),
    "gpt_oss": Kind(
        "GptOssMLP",
        Experts(
            **{
                **EXPERT,
                "routing": Routing(scores="softmax of the chosen"),
                "expert": FeedForward(
                    size=SIZE, fused=True, interleaved=True, clamp=Clamp(limit=1.5, slope=1.2, offset=1.0)
                ),
                "router": "mlp.router",
                "names": (("gate_up", "gate_up_proj"), ("down", "down_proj")),
            }
        ),
        {"num_local_experts": COUNT, "swiglu_limit": 1.5, "swiglu_alpha": 1.2},
        {"biases": frozenset({"router", "gate_up", "down"})},
    ),
    "gemma4_text": Kind(
        "Gemma4TextDecoderLayer",
        Experts(
            **{
                **EXPERT,
                "expert": FeedForward(size=SIZE, activation="gelu_tanh"),
                "shared": FeedForward(size=SHARED, activation="gelu_tanh"),
                "norms": gemma4.NORMS_OF_EXPERTS,
                "router": "router.proj",
                "scales": "router",
                "module": "experts",
                "shared_module": "mlp",
            }
        ),
        {
            "enable_moe_block": True,
            "top_k_experts": CHOSEN,
            "intermediate_size": SHARED,
            "hidden_size_per_layer_input": 0,
        },
        {"norms": gemma2.NORMS, "norm_style": "wide", "scalar": True},
    ),
}


class NoAttention(torch.nn.Module):
    """In place of that of a whole layer, which then is its other half alone."""

    def forward(self, hidden_states: torch.Tensor, **others: object) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


def experts_of(layer: Layer) -> Experts:
    assert isinstance(layer.feed_forward, Experts)
    return layer.feed_forward


@dataclass(frozen=True)
class Reference:
    """Random weights of a block by name, those of each expert apart; what it gets, whom it chooses, what it gives."""

    tensors: dict[str, torch.Tensor]
    hidden_TD: torch.Tensor
    ids_TK: torch.Tensor
    given_TD: torch.Tensor


def reference(model: str) -> Reference:
    kind = KINDS[model].experts
    config = CONFIG_MAPPING[model](**{**SIZES, **KINDS[model].config})
    module = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    torch.manual_seed(1)
    is_layer = "Layer" in KINDS[model].block
    block = getattr(module, KINDS[model].block)(config, *([0] if is_layer else [])).eval()
    if is_layer:
        block.self_attn = NoAttention()
    for tensor in block.state_dict().values():
        tensor.normal_(std=0.3)
    hidden_TD, norm_D = torch.randn(TOKENS, HIDDEN), torch.randn(HIDDEN)
    input_TD = hidden_TD if is_layer else rms_norm(hidden_TD, norm_D, 1e-6, KINDS[model].as_layer().norm_style)
    _, _, ids_TK = (block.router if hasattr(block, "router") else block.gate)(input_TD)
    given = block(input_TD.unsqueeze(0))
    given_TD = (given[0] if isinstance(given, tuple) else given).squeeze(0)
    tensors = {"layer.post_attention_layernorm.weight": norm_D}
    for name, tensor in block.state_dict().items():
        if name.startswith("experts."):
            tensors |= of_experts(kind, name, tensor)
        else:
            tensors[f"layer.{name}" if is_layer else f"layer.mlp.{name}"] = tensor
    return Reference(tensors, hidden_TD, ids_TK, given_TD if is_layer else hidden_TD + given_TD)


def of_experts(kind: Experts, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of all experts, by the names that those of each have."""
    short = name.removeprefix("experts.").removesuffix("_bias").removesuffix("_proj")
    ending = "bias" if name.endswith("_bias") else "weight"
    apart = {short: tensor.mT if kind.expert.interleaved and ending == "weight" else tensor}
    if short == "gate_up" and not kind.expert.fused:
        apart = dict(zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True))
    return {
        f"layer.{kind.module}.{at}.{short}_proj.{ending}": one
        for short, all_experts in apart.items()
        for at, one in enumerate(all_experts)
    }


def computed(
    layer: Layer, tensors: dict[str, torch.Tensor], hidden_TD: torch.Tensor, order: Sequence[int] = range(COUNT)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whom we choose, and what we give, where experts are computed in this order."""
    kind = experts_of(layer)

    def weights(specs: Any) -> Weights:
        named = {spec.short: tensors[spec.name] for spec in specs}
        assert all(named[spec.short].shape == spec.shape for spec in specs)
        return Weights(named, {short: DenseMatrix(one) for short, one in named.items() if one.ndim == 2})

    rows, own = len(hidden_TD), weights(layer.specs("layer")[FFN])
    filled_TD = LEAST_ROWS.fill(hidden_TD)
    routed = experts.choose(layer, kind, own, filled_TD, by_formula=True)
    ids_TK = routed.ids_TK[:rows]
    outputs_TKD = torch.zeros(rows, kind.chosen, HIDDEN, dtype=hidden_TD.dtype)
    all_specs = [*layer.expert_specs("layer")]
    for index in order:
        at_R, rank_R = (ids_TK == index).nonzero(as_tuple=True)
        if len(at_R):
            input_RD = LEAST_ROWS.fill(routed.input_TD[at_R])
            output_RD = experts.expert_product(kind, weights(all_specs[index]), input_RD, by_formula=True)
            outputs_TKD[at_R, rank_R] = output_RD[: len(at_R)]
    beside_TD = None if routed.beside_TD is None else routed.beside_TD[:rows]
    given_TD = hidden_TD.clone()
    experts.add_up(layer, own, given_TD, outputs_TKD, routed.weights_TK[:rows], beside_TD)
    return ids_TK, given_TD


def changed(layer: Layer) -> dict[str, Layer]:
    """The same with each of what makes it special taken away: of its routing, its experts, and what is beside them."""
    kind, usual = experts_of(layer), Routing()
    others = {
        one.name: replace(kind, routing=replace(kind.routing, **{one.name: getattr(usual, one.name)}))
        for one in fields(Routing)
        if one.name not in ("wide", "kept") and getattr(kind.routing, one.name) != getattr(usual, one.name)
    }
    if kind.routing.scores == "softmax of the chosen":
        del others["scores"]  # the usual scores differ from it in how they are rounded
    without: dict[str, Any] = {"shared_gated": False, "scales": None, "norms": None}
    others |= {name: replace(kind, **{name: none}) for name, none in without.items() if getattr(kind, name)}
    of_expert: dict[str, Any] = {"interleaved": False, "clamp": None, "activation": "relu2"}
    others |= {
        name: replace(kind, expert=replace(kind.expert, **{name: none}))
        for name, none in of_expert.items()
        if getattr(kind.expert, name) and not (name == "activation" and kind.expert.clamp)
    }
    biases = {f"{one} bias": replace(layer, biases=layer.biases - {one}) for one in layer.biases}
    return {name: replace(layer, feed_forward=other) for name, other in others.items()} | biases


@pytest.mark.parametrize("model", KINDS)
@torch.inference_mode()
def test_a_block_chooses_and_gives_what_that_of_transformers_does_and_each_flag_matters(model: str) -> None:
    layer, expected = KINDS[model].as_layer(), reference(model)
    ids_TK, given_TD = computed(layer, expected.tensors, expected.hidden_TD)
    assert torch.equal(ids_TK.sort(dim=-1).values, expected.ids_TK.sort(dim=-1).values)
    torch.testing.assert_close(given_TD, expected.given_TD, atol=1e-5, rtol=0)
    for flag, other in changed(layer).items():
        _, gives_TD = computed(other, expected.tensors, expected.hidden_TD)
        assert (gives_TD - expected.given_TD).abs().max() > 1e-2, flag


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", KINDS)
@torch.inference_mode()
def test_the_bits_of_a_row_depend_on_neither_the_order_of_experts_nor_on_company(
    model: str, dtype: torch.dtype
) -> None:
    layer, given = KINDS[model].as_layer(), reference(model)
    tensors = {name: one.to(dtype) for name, one in given.tensors.items()}
    hidden_TD = torch.cat([given.hidden_TD] * 60).to(dtype)  # as many as threads share
    _, whole_TD = computed(layer, tensors, hidden_TD)
    order = random.Random(2).sample(range(COUNT), COUNT)
    assert torch.equal(computed(layer, tensors, hidden_TD, order)[1], whole_TD)
    for begin, end in ((0, 1), (5, 6), (3, 12), (7, 36), (0, TOKENS)):
        assert torch.equal(computed(layer, tensors, hidden_TD[begin:end])[1], whole_TD[begin:end]), (begin, end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_gate_and_up_that_lie_side_by_side_are_multiplied_as_one_with_the_same_bits(dtype: torch.dtype) -> None:
    kind, rows = Experts(**EXPERT), torch.randn(5, HIDDEN).to(dtype)
    stacked_FD, down_DF = torch.randn(2 * SIZE, HIDDEN).to(dtype), DenseMatrix(torch.randn(HIDDEN, SIZE).to(dtype))
    gate, up = DenseMatrix(stacked_FD[:SIZE]), DenseMatrix(stacked_FD[SIZE:])
    both = joined(gate, up, dtype)
    assert both is not None
    assert torch.equal(both.weight_FD, stacked_FD)
    elsewhere = DenseMatrix(stacked_FD[SIZE:].clone())
    assert joined(gate, elsewhere, dtype) is joined(up, gate, dtype) is joined(gate, up, torch.float16) is None
    given = [
        experts.expert_product(kind, Weights(dict.fromkeys(matrices, stacked_FD), matrices), rows, by_formula=True)
        for matrices in ({"gate": gate, "up": one, "down": down_DF} for one in (up, elsewhere))
    ]
    assert torch.equal(*given)
