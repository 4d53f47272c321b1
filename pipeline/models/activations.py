"""The memory that the halves of a layer and the head take while `decoder` computes them, for each row of a kernel.

Counted beside the hidden states, the weights, and what attention takes for a whole context. `fused` says that norms,
gates and rotary embedding are one kernel each, as on a GPU.

Letters in names: N query heads, K kv heads, H head dim.
"""

from dataclasses import replace

import torch

from pipeline.models.compressed import CompressedAttention
from pipeline.models.feed_forwards import Experts, FeedForward
from pipeline.models.latents import LatentAttention
from pipeline.models.layers import Attention, DeltaNet, Layer, NormStyle
from pipeline.models.streams import Streams

FP32_BYTES = torch.float32.itemsize
SUMMED_LOGITS = 1 << 14
"""Of a row that is scored, so many are added up at a time, on a CPU as fp64."""
LIKELY_BYTES = 16 << 10
"""That those logits take, and their places, among which the most likely ones are looked for."""


def half_bytes(layer: Layer, dtype: torch.dtype, *, fused: bool, by_formula: bool) -> int:
    """The most that a half takes for a row."""
    size, norms = layer.hidden_size * dtype.itemsize, layer.norms
    match layer.mixer:
        case CompressedAttention() as compressed:
            mixer = _compressed_bytes(compressed, layer.hidden_size, dtype, fused=fused)
        case LatentAttention() as latent:
            mixer = _latent_bytes(latent, layer.hidden_size, dtype)
        case Attention() as kind:
            mixer = _attention_bytes(layer, kind, dtype, fused=fused)
        case DeltaNet() as net:
            mixer = _delta_net_bytes(net, layer.hidden_size, dtype, fused=fused)
    norm = _norm_bytes(layer.hidden_size, dtype, layer.norm_style, fused=fused)
    halves = (
        (norms.before_mixer, mixer, norms.after_mixer),
        (norms.before_feed_forward, _feed_forward_bytes(layer, dtype, fused, by_formula), norms.after_feed_forward),
    )
    most = max(
        max(norm, size * bool(before) + max(half, size + norm if after else 0)) for before, half, after in halves
    )
    if layer.streams is None:
        return most
    mixed = size + layer.streams.mixed * FP32_BYTES  # what a half gets, and what mixes
    streams = streams_bytes(layer.hidden_size, layer.streams, dtype)
    return max(streams, mixed + most, mixed + 2 * size + streams)


def streams_bytes(hidden_size: int, streams: Streams, dtype: torch.dtype) -> int:
    """What the streams of a row take while they are summed up, or added to: in fp32, once normed or new."""
    copies = 1 if dtype is torch.float32 else 2
    return hidden_size * FP32_BYTES * (streams.count * copies + 2)


def _attention_bytes(layer: Layer, kind: Attention, dtype: torch.dtype, *, fused: bool) -> int:
    """Beside what it gets."""
    item, size = dtype.itemsize, layer.hidden_size * dtype.itemsize
    NH, KH = kind.heads * kind.head_dim * item, kind.kv_heads * kind.head_dim * item
    # Of a gated one, the gate is copied from behind the queries, which then lie apart once they have been normed.
    projected = (3 if kind.gated else 1) * NH + (1 if kind.values_are_keys else 2) * KH
    normed = 0
    if kind.query_key_norms is not None:
        normed = projected + _norm_bytes(kind.heads * kind.head_dim, dtype, layer.norm_style, fused=fused)
        projected = (2 if kind.gated else 1) * NH + 2 * KH
    # The queries turned, each piece of what they give, and all of it; the turned ones in their cells, or two steps.
    attended = projected + max(4 * NH, NH + size)
    if fused:  # with what attention keeps of long contexts meanwhile
        copied = NH if kind.gated or kind.fused else 0
        attended = projected + copied + NH + max(size, (kind.heads * kind.head_dim + 2 * kind.heads) * FP32_BYTES)
    return max(normed, attended)


def _compressed_bytes(kind: CompressedAttention, hidden_size: int, dtype: torch.dtype, *, fused: bool) -> int:
    """Beside what it gets: queries while they are made, or they and what they give, or all that is given.

    Tokens that are compressed are in fp32 meanwhile.
    """
    item, NH = dtype.itemsize, kind.heads * kind.head_dim * dtype.itemsize
    latent = (2 * kind.query_rank + 3 * kind.head_dim) * item
    made = latent + NH + max(_norm_bytes(kind.heads * kind.head_dim, dtype, "wide", fused=fused), NH)
    projected = max((one.projected for one in kind.compressors.values()), default=0)
    compressed = latent + projected * (2 * item + 4 * FP32_BYTES)
    index = kind.index_heads * kind.index.channels * item if kind.index else 0
    attended = latent + index + 3 * NH
    given = latent + 2 * NH + NH // kind.groups + (2 * kind.groups * kind.output_rank + hidden_size) * item
    return max(made, compressed, latent + NH + 3 * index, attended, given)


def _latent_bytes(kind: LatentAttention, hidden_size: int, dtype: torch.dtype) -> int:
    """Beside what it gets: queries while they are made, or they in their cells and what they give, or all of it."""
    made = kind.heads * (kind.still_dim + 2 * kind.turned_dim + kind.rank + kind.head_dim)
    index = kind.indexer.heads * kind.indexer.head_dim if kind.indexer else 0
    turned = kind.heads * kind.head_dim + 4 * index  # of the indexer, in steps, beside the queries
    attended = kind.heads * 2 * (kind.head_dim + kind.rank) + kind.head_dim + index
    given = kind.heads * (kind.rank + 2 * kind.output_dim) + hidden_size
    return max(made, turned, attended, given) * dtype.itemsize


def _delta_net_bytes(net: DeltaNet, hidden_size: int, dtype: torch.dtype, *, fused: bool) -> int:
    """Beside what it gets. Where matrices are grouped, what they give is copied apart.

    Kernels keep what comes out of the convolution, and a few numbers of each head.
    """
    values, gates = net.value_heads * net.value_dim, 2 * net.value_heads
    inputs = net.channels + values + gates
    projected = inputs + gates + (net.channels + values if net.grouped else 0)
    numbers = (2 * net.value_heads + 3 * net.key_heads) * FP32_BYTES
    kept = net.channels * dtype.itemsize + numbers if fused else 0
    return max(projected * dtype.itemsize, (inputs + values) * dtype.itemsize + max(kept, hidden_size * dtype.itemsize))


def _feed_forward_bytes(layer: Layer, dtype: torch.dtype, fused: bool, by_formula: bool) -> int:
    """Beside what it gets."""
    size = layer.hidden_size * dtype.itemsize
    match layer.feed_forward:
        case FeedForward() as dense:
            return _channels_bytes(dense, size, dtype, fused, by_formula)
        case Experts() as experts:
            return _experts_bytes(layer, experts, size, dtype, fused, by_formula)


def _experts_bytes(layer: Layer, kind: Experts, size: int, dtype: torch.dtype, fused: bool, by_formula: bool) -> int:
    """Beside what all of them get, or a copy of the rows of one: what chooses, what is shared, one expert, or the sum.

    What is chosen is kept in fp32, and as many numbers of 8 bytes; to choose from groups takes scores once more.
    """
    norm = _norm_bytes(layer.hidden_size, dtype, layer.norm_style, fused=fused)
    routed = kind.count * FP32_BYTES * (2 if kind.routing.groups == 1 else 3)
    if kind.routing.wide and dtype is not torch.float32:
        routed = max(routed, layer.hidden_size * FP32_BYTES + kind.count * FP32_BYTES)
    if kind.scales is not None:
        routed = max(routed + size, _norm_bytes(layer.hidden_size, dtype, "plain", fused=fused))
    chosen = kind.chosen * (FP32_BYTES + torch.int64.itemsize)
    beside = 0 if kind.shared is None else _channels_bytes(kind.shared, size, dtype, fused, by_formula)
    if kind.norms is not None:  # what experts get is another tensor, beside which what is shared is normed, too
        beside = max(beside + size, 2 * size + norm)
    added = layer.hidden_size * FP32_BYTES + size + (norm if kind.norms is not None else 0)
    expert = replace(kind.expert, fused=kind.expert.gated)  # as gate and up may lie
    return max(routed + chosen, beside + chosen, _channels_bytes(expert, size, dtype, fused, by_formula), added)


def _channels_bytes(kind: FeedForward, size: int, dtype: torch.dtype, fused: bool, by_formula: bool) -> int:
    plain = fused and kind.gated
    # One matrix gives gate and up side by side, which are copied from there.
    wide = ((4 if plain else 3) if kind.fused else 2 if kind.gated else 1) * kind.size * dtype.itemsize
    is_exact = by_formula or kind.clamp is not None
    activated = 0 if plain or kind.activation == "relu2" else _activation_bytes(kind.size, dtype, by_formula=is_exact)
    return wide + max(size, activated)


def head_bytes(hidden_size: int, slice_rows: int, dtype: torch.dtype, style: NormStyle, *, fused: bool) -> int:
    """The most that a slice of the head takes for a row, whose logits are cast to fp32."""
    cast = 0 if dtype is torch.float32 else FP32_BYTES
    norm = hidden_size * dtype.itemsize + _norm_bytes(hidden_size, dtype, style, fused=fused)
    return max(norm, slice_rows * (dtype.itemsize + cast))


def score_bytes(hidden_size: int, slice_rows: int, dtype: torch.dtype, style: NormStyle, *, fused: bool) -> int:
    """The most that a slice of the head takes for a row that is scored."""
    beside = LIKELY_BYTES if fused else min(slice_rows, SUMMED_LOGITS) * torch.float64.itemsize
    return head_bytes(hidden_size, slice_rows, dtype, style, fused=fused) + beside


def embedding_bytes(hidden_size: int, turned_channels: int, dtype: torch.dtype) -> int:
    """The most that the embedding takes for a row: itself, or the angles of the widest rope, step by step."""
    return max(hidden_size * dtype.itemsize, 5 * turned_channels * FP32_BYTES)


def _norm_bytes(items: int, dtype: torch.dtype, style: NormStyle, *, fused: bool) -> int:
    """What is normed is another tensor; in torch the fp32 of it, and what follows from that."""
    if fused:
        return items * dtype.itemsize
    if style == "plain":
        return items * 2 * (FP32_BYTES if dtype is torch.float32 else FP32_BYTES + dtype.itemsize)
    return items * (FP32_BYTES if dtype is torch.float32 else 2 * FP32_BYTES + dtype.itemsize)


def _activation_bytes(items: int, dtype: torch.dtype, *, by_formula: bool) -> int:
    if dtype is torch.float32:
        return items * FP32_BYTES
    return items * 2 * FP32_BYTES if by_formula else 0
