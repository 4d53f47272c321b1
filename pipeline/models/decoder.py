"""The halves of a decoder layer and the head, as functions of (weights, hidden, kv). Halves change the hidden states.

Weights are looked up by the short names of `layers`; they may lie at any address that suits their dtype, and are
cast at use where their dtype is not that of the hidden states.

Shape letters in names: T tokens of this pass, D hidden, N query heads, K kv heads, H head dim, F ffn, V vocabulary.
"""

from collections.abc import Hashable, Mapping

import torch

from pipeline.formats.matrix import Weights
from pipeline.models import delta_net
from pipeline.models.attention import LayerKV, attend_all, launches
from pipeline.models.delta_state import LayerState
from pipeline.models.layers import Attention, DeltaNet, Layer
from pipeline.models.model_config import ModelConfig
from pipeline.models.ops import rms_norm, silu_gate
from pipeline.models.outside import Outside
from pipeline.models.pass_rows import Rows
from pipeline.models.ropes import Rope
from pipeline.models.rotary import Rotary


def attention_half(
    layer: Layer,
    weights: Weights,
    hidden_TD: torch.Tensor,
    kv: LayerKV | LayerState,
    rows: Rows,
    rotary: Mapping[Rope, Rotary],
) -> torch.Tensor:
    """Add norm and mixer of one layer to the tokens of a pass; returns `hidden_TD`.

    Attention writes their keys and values into `kv` first, then lets each attend to its own sequence, turned by the
    one of `rotary` that is of its rope. A delta net changes the state of each sequence there.
    """
    normed_TD = rms_norm(hidden_TD, weights.tensors["norm"], layer.norm_epsilon)
    match layer.mixer, kv:
        case Attention() as kind, LayerKV():
            mixed_TD = _attention(layer, kind, weights, normed_TD, kv, rows, rotary[kind.rope] if kind.rope else None)
        case DeltaNet() as net, LayerState():
            mixed_TD = delta_net.mix(net, weights, normed_TD, kv, rows, layer.norm_epsilon)
    return hidden_TD.add_(mixed_TD)


def attention_launches(layer: Layer, kv: LayerKV | LayerState, rows: Rows) -> Hashable:
    """What the launches of `attention_half` depend on beside the number of rows; None if on more than can be told."""
    match layer.mixer, kv:
        case Attention() as kind, LayerKV():
            return launches(kind, kv, rows)
    return None


def ffn_half(layer: Layer, weights: Weights, hidden_TD: torch.Tensor, silu_by_formula: bool = False) -> torch.Tensor:
    """Add norm and feed-forward of one layer; returns `hidden_TD`."""
    normed_TD = rms_norm(hidden_TD, weights.tensors["norm"], layer.norm_epsilon)
    return hidden_TD.add_(_gated_feed_forward(weights, normed_TD, silu_by_formula))


def scale_embedding(outside: Outside, hidden_TD: torch.Tensor) -> None:
    """Multiply embedding rows, in place, by what the family multiplies them by, rounded to their dtype."""
    if (multiplier := outside.embedding_multiplier) != 1:
        hidden_TD.mul_(torch.tensor(multiplier, dtype=hidden_TD.dtype).item())


def final_norm(config: ModelConfig, weights: Weights, hidden_TD: torch.Tensor) -> torch.Tensor:
    """The norm before the output matrix; returns [T, D]."""
    return rms_norm(hidden_TD, weights.tensors["norm"], config.norm_epsilon)


def output_slice(outside: Outside, weights: Weights, normed_TD: torch.Tensor) -> torch.Tensor:
    """Logits of the rows of the vocabulary that "output" holds; returns fp32 [T, V of the slice]."""
    logits_TV = weights.project("output", normed_TD).float()
    if outside.logits_divisor != 1:
        logits_TV.div_(outside.logits_divisor)
    if (cap := outside.logits_softcap) is not None:
        logits_TV.div_(cap).tanh_().mul_(cap)
    return logits_TV


def _attention(
    layer: Layer,
    kind: Attention,
    weights: Weights,
    normed_TD: torch.Tensor,
    kv: LayerKV,
    rows: Rows,
    turn: Rotary | None,
) -> torch.Tensor:
    heads = (len(normed_TD), -1, kind.head_dim)
    q_TNH, k_TKH, v_TKH = (weights.project(short, normed_TD).view(heads) for short in ("q", "k", "v"))
    if kind.query_key_norms == "heads":
        q_TNH = rms_norm(q_TNH, weights.tensors["q_norm"], layer.norm_epsilon)
        k_TKH = rms_norm(k_TKH, weights.tensors["k_norm"], layer.norm_epsilon)
    return weights.project("o", attend_all(q_TNH, k_TKH, v_TKH, turn, kv, rows, kind))


def _gated_feed_forward(weights: Weights, normed_TD: torch.Tensor, silu_by_formula: bool) -> torch.Tensor:
    gate_TF, up_TF = (weights.project(short, normed_TD) for short in ("gate", "up"))
    return weights.project("down", silu_gate(gate_TF, up_TF, by_formula=silu_by_formula))
