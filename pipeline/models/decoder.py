"""The halves of a decoder layer and the head, as functions of (weights, hidden, kv). Halves change the hidden states.

Weights are looked up by the short names of `layers`; they may lie at any address that suits their dtype, and are
cast at use where their dtype is not that of the hidden states.

Shape letters in names: T tokens of this pass, D hidden, N query heads, K kv heads, H head dim, F ffn, V vocabulary.
"""

from collections.abc import Hashable, Mapping

import torch

from pipeline.formats.decoding import add_product, projections
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import GATE_UP, QKV
from pipeline.models import compressed_attention, delta_net, hyper_connections, latent_attention
from pipeline.models.attention import LayerKV
from pipeline.models.compressed import CompressedAttention
from pipeline.models.delta_state import LayerState
from pipeline.models.feed_forwards import FeedForward
from pipeline.models.latents import LatentAttention
from pipeline.models.layers import Attention, DeltaNet, Layer
from pipeline.models.model_config import ModelConfig
from pipeline.models.ops import activate, clamped_gate, gate, rms_norm, sigmoid_gate
from pipeline.models.outside import Outside
from pipeline.models.pass_attention import attend_all, launches
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
    row_TD, mixing = entered(layer, weights, hidden_TD)
    normed_TD = normed(layer, weights, "norm", row_TD)
    match layer.mixer, kv:
        case CompressedAttention(rope=Rope() as rope) as compressed, LayerKV():
            mixed_TA = compressed_attention.mix(compressed, weights, normed_TD, rotary[rope], kv, rows)
        case LatentAttention() as latent, LayerKV():
            turn = rotary[latent.rope] if latent.rope else None
            mixed_TA = latent_attention.mix(latent, weights, normed_TD, turn, kv, rows)
        case Attention() as kind, LayerKV():
            mixed_TA = _attention(layer, kind, weights, normed_TD, kv, rows, rotary[kind.rope] if kind.rope else None)
        case DeltaNet() as net, LayerState():
            mixed_TA = delta_net.mix(net, weights, normed_TD, kv, rows, layer.norm_epsilon)
    return _add_product(layer, weights, hidden_TD, "o", mixed_TA, mixing)


def attention_launches(layer: Layer, kv: LayerKV | LayerState, rows: Rows) -> Hashable:
    """Return what launches of `attention_half` depend on beside the rows; None if on more than can be told."""
    match layer.mixer, kv:
        case LatentAttention(chosen=int()) | CompressedAttention(), _:
            return None  # what they look at is found sequence by sequence
        case Attention() as kind, LayerKV():
            return launches(kind, kv, rows)
        case DeltaNet() as net, LayerState():
            return delta_net.launches(net, kv)
    return None


def ffn_half(layer: Layer, weights: Weights, hidden_TD: torch.Tensor, by_formula: bool = False) -> torch.Tensor:
    """Add norm and feed-forward of one layer; returns `hidden_TD`. See `activate` for `by_formula`.

    One that has experts in place of it is computed by `experts`.
    """
    if isinstance(kind := layer.feed_forward, FeedForward):
        row_TD, mixing = entered(layer, weights, hidden_TD)
        between_TF = feed_forward_channels(kind, weights, normed(layer, weights, "norm", row_TD), by_formula)
        _add_product(layer, weights, hidden_TD, "down", between_TF, mixing)
    return hidden_TD.mul_(weights.tensors["scalar"].to(hidden_TD.dtype)) if layer.scalar else hidden_TD


def entered(layer: Layer, weights: Weights, hidden_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a half gets: the hidden states, or one row of several streams, and how to add to these."""
    if layer.streams is None:
        return hidden_TD, None
    return hyper_connections.enter(layer.streams, weights.tensors, hidden_TD, layer.norm_epsilon)


def scale_embedding(outside: Outside, hidden_TD: torch.Tensor) -> None:
    """Multiply embedding rows, in place, by what the family multiplies them by, rounded to their dtype."""
    if (multiplier := outside.embedding_multiplier) != 1:
        hidden_TD.mul_(torch.tensor(multiplier, dtype=hidden_TD.dtype).item())


def final_norm(config: ModelConfig, weights: Weights, hidden_TD: torch.Tensor) -> torch.Tensor:
    """The norm before the output matrix, of what streams are summed up to; returns [T, D]."""
    if (streams := config.outside.streams) is not None:
        hidden_TD = hyper_connections.summed_up(streams, weights.tensors, hidden_TD, config.norm_epsilon)
    return rms_norm(hidden_TD, weights.tensors["norm"], config.norm_epsilon, config.norm_style)


def output_slice(outside: Outside, weights: Weights, normed_TD: torch.Tensor) -> torch.Tensor:
    """Logits of the rows of the vocabulary that "output" holds; returns fp32 [T, V of the slice]."""
    logits_TV = weights.project("output", normed_TD).float()
    if outside.logits_divisor != 1:
        logits_TV.div_(outside.logits_divisor)
    if (cap := outside.logits_softcap) is not None:
        logits_TV.div_(cap).tanh_().mul_(cap)
    return logits_TV


def normed(layer: Layer, weights: Weights, short: str, x_TD: torch.Tensor) -> torch.Tensor:
    """`x_TD` behind the norm of that name, or itself where the layer has none."""
    weight_D = weights.tensors.get(short)
    return x_TD if weight_D is None else rms_norm(x_TD, weight_D, layer.norm_epsilon, layer.norm_style)


def _add_product(
    layer: Layer,
    weights: Weights,
    hidden_TD: torch.Tensor,
    short: str,
    computed_TF: torch.Tensor,
    mixing: torch.Tensor | None,
) -> torch.Tensor:
    """Add the last product of a half, normed and multiplied where the layer says so, or to all streams."""
    if layer.streams is not None and mixing is not None:
        return hyper_connections.leave(layer.streams, mixing, hidden_TD, weights.project(short, computed_TF))
    if "norm_after" not in weights.tensors and layer.residual_multiplier == 1:
        return add_product(weights, short, computed_TF, hidden_TD)
    computed_TD = normed(layer, weights, "norm_after", weights.project(short, computed_TF))
    if layer.residual_multiplier != 1:
        computed_TD.mul_(layer.residual_multiplier)
    return hidden_TD.add_(computed_TD)


def _attention(
    layer: Layer,
    kind: Attention,
    weights: Weights,
    normed_TD: torch.Tensor,
    kv: LayerKV,
    rows: Rows,
    turn: Rotary | None,
) -> torch.Tensor:
    q_TNH, k_TKH, v_TKH, gate_TA = _projected(kind, weights, normed_TD)
    if kind.query_key_norms is not None:
        q_TNH = _head_norm(layer, kind, q_TNH, weights.tensors["q_norm"])
        k_TKH = _head_norm(layer, kind, k_TKH, weights.tensors["k_norm"])
    if kind.value_norm:
        v_TKH = rms_norm(v_TKH, None, layer.norm_epsilon)
    mixed_TA = attend_all(q_TNH, k_TKH, v_TKH, turn, kv, rows, kind, weights.tensors.get("sinks"))
    return mixed_TA if gate_TA is None else sigmoid_gate(mixed_TA, gate_TA)


def _projected(
    kind: Attention, weights: Weights, normed_TD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Queries, keys and values, and the gate [T, N * H] where there is one."""
    if kind.fused:
        rows = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim, kind.kv_heads * kind.head_dim
        q_TA, k_TA, v_TA = weights.project("qkv", normed_TD).split(rows, dim=1)
    else:
        q_TA, k_TA, *values = projections(weights, QKV[:2] if kind.values_are_keys else QKV, normed_TD)
        v_TA = values[0] if values else k_TA
    q_TNH, k_TKH, v_TKH = (
        one.unflatten(1, (heads, -1))
        for one, heads in ((q_TA, kind.heads), (k_TA, kind.kv_heads), (v_TA, kind.kv_heads))
    )
    if not kind.gated:
        return q_TNH, k_TKH, v_TKH, None
    q_TNH, gate_TNH = q_TNH.chunk(2, dim=-1)
    return q_TNH, k_TKH, v_TKH, gate_TNH.flatten(1)


def _head_norm(layer: Layer, kind: Attention, x_TNH: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x_TNH if kind.query_key_norms == "heads" else x_TNH.flatten(1)
    return rms_norm(x, weight, layer.norm_epsilon, layer.norm_style).view(x_TNH.shape)


def feed_forward_channels(
    kind: FeedForward, weights: Weights, normed_TD: torch.Tensor, by_formula: bool
) -> torch.Tensor:
    """Return what the last matrix of a feed-forward multiplies, [T, F]."""
    if not kind.gated:
        return activate(weights.project("up", normed_TD), kind.activation, by_formula=by_formula)
    if kind.fused:
        both_TF = weights.project("gate_up", normed_TD)
        gate_TF, up_TF = (both_TF[:, ::2], both_TF[:, 1::2]) if kind.interleaved else both_TF.chunk(2, dim=1)
        gate_TF = gate_TF.contiguous()
    else:
        gate_TF, up_TF = projections(weights, GATE_UP, normed_TD)
    return gated(kind, gate_TF, up_TF, by_formula)


def gated(kind: FeedForward, gate_TF: torch.Tensor, up_TF: torch.Tensor, by_formula: bool) -> torch.Tensor:
    """Return the same, of what the matrices before it gave, in the memory of `gate_TF`, which is contiguous."""
    if kind.clamp is not None:
        return clamped_gate(gate_TF, up_TF, kind.clamp)
    return gate(gate_TF, up_TF, kind.activation, by_formula=by_formula)
