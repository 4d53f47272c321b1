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

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import FFN
from pipeline.models import experts
from pipeline.models.feed_forwards import Experts, FeedForward, Routing
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
                "shared_module": "shared_experts",
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
}


def layer_of(kind: Experts) -> Layer:
    return Layer(hidden_size=HIDDEN, mixer=attention(2, 2, 2), feed_forward=kind, biases=frozenset(), norm_epsilon=1e-6)


@dataclass(frozen=True)
class Reference:
    """Random weights of a block by name, those of each expert apart; what it gets, whom it chooses, what it gives."""

    tensors: dict[str, torch.Tensor]
    hidden_TD: torch.Tensor
    ids_TK: torch.Tensor
    given_TD: torch.Tensor


def reference(model: str) -> Reference:
    config = CONFIG_MAPPING[model](**{**SIZES, **KINDS[model].config})
    module = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    torch.manual_seed(1)
    block = getattr(module, KINDS[model].block)(config).eval()
    for tensor in block.state_dict().values():
        tensor.normal_(std=0.3)
    hidden_TD, norm_D = torch.randn(TOKENS, HIDDEN), torch.randn(HIDDEN)
    normed_TD = rms_norm(hidden_TD, norm_D, 1e-6)
    _, _, ids_TK = block.gate(normed_TD)
    given_TD = hidden_TD + block(normed_TD.unsqueeze(0)).squeeze(0)
    tensors = {"layer.post_attention_layernorm.weight": norm_D}
    for name, tensor in block.state_dict().items():
        if not name.startswith("experts."):
            tensors[f"layer.mlp.{name}"] = tensor
            continue
        apart = {"down": tensor} if "down" in name else dict(zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True))
        for short, one_EFD in apart.items():
            tensors |= {f"layer.mlp.experts.{at}.{short}_proj.weight": one for at, one in enumerate(one_EFD)}
    return Reference(tensors, hidden_TD, ids_TK, given_TD)


def computed(
    kind: Experts, tensors: dict[str, torch.Tensor], hidden_TD: torch.Tensor, order: Sequence[int] = range(COUNT)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whom we choose, and what we give, where experts are computed in this order."""
    layer = layer_of(kind)

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


def changed(kind: Experts) -> dict[str, Experts]:
    """The same with each of what makes its routing special taken away, and without the gate of what is shared."""
    usual = Routing()
    others = {
        one.name: replace(kind, routing=replace(kind.routing, **{one.name: getattr(usual, one.name)}))
        for one in fields(Routing)
        if one.name not in ("wide", "kept") and getattr(kind.routing, one.name) != getattr(usual, one.name)
    }
    return others | ({"shared_gated": replace(kind, shared_gated=False)} if kind.shared_gated else {})


@pytest.mark.parametrize("model", KINDS)
@torch.inference_mode()
def test_a_block_chooses_and_gives_what_that_of_transformers_does_and_each_flag_matters(model: str) -> None:
    kind, expected = KINDS[model].experts, reference(model)
    ids_TK, given_TD = computed(kind, expected.tensors, expected.hidden_TD)
    assert torch.equal(ids_TK.sort(dim=-1).values, expected.ids_TK.sort(dim=-1).values)
    torch.testing.assert_close(given_TD, expected.given_TD, atol=1e-5, rtol=0)
    for flag, other in changed(kind).items():
        _, gives_TD = computed(other, expected.tensors, expected.hidden_TD)
        assert (gives_TD - expected.given_TD).abs().max() > 1e-2, flag


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", KINDS)
@torch.inference_mode()
def test_the_bits_of_a_row_depend_on_neither_the_order_of_experts_nor_on_company(
    model: str, dtype: torch.dtype
) -> None:
    kind, given = KINDS[model].experts, reference(model)
    tensors = {name: one.to(dtype) for name, one in given.tensors.items()}
    hidden_TD = torch.cat([given.hidden_TD] * 60).to(dtype)  # as many as threads share
    _, whole_TD = computed(kind, tensors, hidden_TD)
    order = random.Random(2).sample(range(COUNT), COUNT)
    assert torch.equal(computed(kind, tensors, hidden_TD, order)[1], whole_TD)
    for begin, end in ((0, 1), (5, 6), (3, 12), (7, 36), (0, TOKENS)):
        assert torch.equal(computed(kind, tensors, hidden_TD[begin:end])[1], whole_TD[begin:end]), (begin, end)
