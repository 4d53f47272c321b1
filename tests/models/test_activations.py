"""What halves of a layer take while they are computed, by torch's own count, against what is planned for them."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.attention_kinds import attention, compressing_attention, latent_attention
from support.layers_alone import AloneLayer, random_weights
from torch.profiler import ProfilerActivity, profile

from actors.core.message import READY
from pipeline.devices.cpu import CpuDevice
from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import FFN
from pipeline.generation.prompt_scores import PromptScorer, ScoredRows
from pipeline.models import compressed_attention, delta_net, experts, sparse_attention
from pipeline.models.activations import embedding_bytes, half_bytes, head_bytes, score_bytes
from pipeline.models.attention import attend
from pipeline.models.compressed import CompressedAttention, Compressor
from pipeline.models.decoder import output_slice
from pipeline.models.families import gemma4
from pipeline.models.feed_forwards import Clamp, Experts, FeedForward, Routing
from pipeline.models.latents import Indexer
from pipeline.models.layers import Attention, DeltaNet, Layer, Norms
from pipeline.models.ops import rms_norm
from pipeline.models.outside import PLAIN
from pipeline.models.pass_attention import scratch_bytes
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.ropes import Rope
from pipeline.models.row_blocks import RowBlocks
from pipeline.models.sparse_attention import IndexRows, attend_chosen
from pipeline.models.streams import Streams
from pipeline.state.kv_layout import KvLayout

ROWS, CONTEXT = 512, 16384
LIBRARY_BYTES = 1 << 20
"""A little that the library of products has of its own."""


def most_bytes(work: Callable[[], object]) -> int:
    """The most that is allocated at a time beside what was there before."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        work()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def layer(mixer: Attention | DeltaNet, size: int, **changes: Any) -> Layer:
    plain = {"hidden_size": 512, "mixer": mixer, "biases": frozenset(), "norm_epsilon": 1e-5}
    return Layer(**{**plain, "feed_forward": FeedForward(size=size), **changes})


AROUND = Norms(after_mixer="b", before_feed_forward="c", after_feed_forward="d")
BEHIND = Norms(before_mixer=None, after_mixer="b", before_feed_forward=None, after_feed_forward="d")
INDEXER = Indexer(heads=6, head_dim=64, interleaved=True)
ENTRIES = Compressor(rate=4, channels=128, overlap=True)
CHOOSING = {"index_heads": 6, "chosen": 64}
NET = {"key_heads": 4, "value_heads": 12, "key_dim": 32, "value_dim": 32, "kernel": 4}
HALVES = {
    "wide feed-forward": layer(attention(8, 2, 64), 3072),
    "norms of heads": layer(attention(16, 8, 64, query_key_norms="heads"), 2048),
    "wide attention": layer(attention(8, 8, 64), 512),
    "norms around": layer(attention(4, 1, 64), 256, norms=AROUND, norm_style="plus_one"),
    "norms behind, of projections": layer(
        attention(16, 4, 64, query_key_norms="projection"), 512, norms=BEHIND, norm_style="wide"
    ),
    "gated, of which some turns": layer(
        attention(16, 2, 64, gated=True, query_key_norms="heads", rope=Rope(theta=1e4, channels=16)), 512
    ),
    "gated without norms": layer(attention(16, 2, 64, gated=True), 512),
    "fused": layer(attention(16, 4, 64, fused=True), 512, feed_forward=FeedForward(size=512, fused=True)),
    "fused feed-forward": layer(attention(8, 4, 64), 0, feed_forward=FeedForward(size=2048, fused=True)),
    "clamped, in turns": layer(
        attention(8, 4, 64),
        0,
        feed_forward=FeedForward(
            size=2048, fused=True, interleaved=True, clamp=Clamp(limit=7.0, slope=1.702, offset=1.0)
        ),
    ),
    "keys as values": layer(attention(16, 4, 64, values_are_keys=True, value_norm=True, query_key_norms="heads"), 512),
    "latent": layer(latent_attention(8, 128, 32, still_dim=256, output_dim=64, query_rank=96), 512),
    "latent that is chosen": layer(
        latent_attention(8, 128, 32, still_dim=256, output_dim=64, query_rank=96, indexer=INDEXER, chosen=2048), 512
    ),
    "compressed": layer(
        compressing_attention(8, 128, 32, compressor=ENTRIES, index=replace(ENTRIES, channels=64), **CHOOSING), 512
    ),
    "several streams": layer(
        compressing_attention(2, 64, 32), 128, streams=Streams(count=4, rounds=3, epsilon=1e-6), norm_style="wide"
    ),
    "delta net": layer(DeltaNet(grouped=False, **NET), 256),
    "delta net in groups": layer(DeltaNet(grouped=True, **NET), 256),
    "gelu": layer(attention(8, 2, 64), 0, feed_forward=FeedForward(size=3072, activation="gelu_tanh")),
    "relu squared": layer(attention(2, 2, 64), 0, feed_forward=FeedForward(size=4096, activation="relu2", gated=False)),
    "interleaved, growing": layer(
        attention(16, 4, 64, rope=Rope(theta=1e4, channels=64, interleaved=True, query_growth=(0.1, 64))), 512
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HALVES)
@torch.inference_mode()
def test_halves_take_no_more_than_planned_and_little_less(name: str, dtype: torch.dtype) -> None:
    one = AloneLayer(HALVES[name], ROWS, dtype)
    attended, mixer = most_bytes(one.attention) - one.read_bytes, one.layer.mixer
    scratch = delta_net.scratch_bytes(mixer) if isinstance(mixer, DeltaNet) else 0
    if isinstance(mixer, CompressedAttention):
        scratch = compressed_attention.scratch_bytes(mixer, ROWS)
    for by_formula in (False, True):
        taken = max(attended, most_bytes(functools.partial(one.ffn, by_formula)))
        planned = ROWS * half_bytes(one.layer, dtype, fused=False, by_formula=by_formula) + scratch
        assert taken < planned + LIBRARY_BYTES, by_formula
        assert planned < 1.25 * taken, by_formula


COUNTED: dict[str, Any] = {"count": 64, "chosen": 4, "routing": Routing()}
CLAMPED = FeedForward(size=1024, fused=True, interleaved=True, clamp=Clamp(limit=7.0, slope=1.702, offset=1.0))
EXPERTS = {
    "experts": Experts(**COUNTED, expert=FeedForward(size=1024)),
    "clamped": Experts(
        **COUNTED, expert=CLAMPED, router="mlp.router", names=(("gate_up", "gate_up_proj"), ("down", "down_proj"))
    ),
    "one that all share": Experts(
        **COUNTED, expert=FeedForward(size=64), shared=FeedForward(size=1024), shared_gated=True
    ),
    "norms of their own": Experts(
        **COUNTED,
        expert=FeedForward(size=64),
        shared=FeedForward(size=128),
        norms=gemma4.NORMS_OF_EXPERTS,
        scales="router",
    ),
    "many, in groups": Experts(
        count=512,
        chosen=4,
        routing=Routing(scores="sigmoid", wide=True, choice_bias=True, groups=4, kept=2),
        expert=FeedForward(size=64),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EXPERTS)
@torch.inference_mode()
def test_experts_take_no_more_than_planned_and_little_less(name: str, dtype: torch.dtype) -> None:
    """Choosing them, the rows of one that all use, and their sum."""
    kind = EXPERTS[name]
    one = layer(attention(2, 2, 32), 0, feed_forward=kind, norms=AROUND, norm_style="wide")
    weights = random_weights(one.specs("layer")[FFN], dtype)
    own = random_weights(next(iter(one.expert_specs("layer"))), dtype)
    hidden_TD, outputs_TKD = torch.randn(ROWS, 512).to(dtype), torch.zeros(ROWS, kind.chosen, 512, dtype=dtype)
    rows = torch.arange(ROWS)
    routed = experts.choose(one, kind, weights, hidden_TD, by_formula=True)
    taken = max(
        most_bytes(lambda: experts.choose(one, kind, weights, hidden_TD, by_formula=True)),
        most_bytes(lambda: experts.expert_product(kind, own, hidden_TD[rows], by_formula=True)),
        most_bytes(lambda: experts.add_up(one, weights, hidden_TD, outputs_TKD, routed.weights_TK, routed.beside_TD)),
    )
    planned = ROWS * half_bytes(one, dtype, fused=False, by_formula=True)
    assert taken < planned + LIBRARY_BYTES
    assert planned < 1.25 * taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prompt_tokens", [0, CONTEXT])
@pytest.mark.parametrize("kind", [attention(8, 2, 64, softcap=30.0), latent_attention(8, 128, 32)], ids=["", "latent"])
@torch.inference_mode()
def test_attention_by_formula_takes_no_more_than_planned(
    kind: Attention, prompt_tokens: int, dtype: torch.dtype
) -> None:
    layout = KvLayout.of(kind, CONTEXT // 16, dtype)
    kv = layout.view(torch.zeros(layout.layer_bytes, dtype=torch.uint8))
    q_TNH, blocks_B = torch.zeros(1, kind.heads, kind.head_dim, dtype=dtype), torch.arange(CONTEXT // 16)
    taken = most_bytes(lambda: attend(q_TNH, kv, blocks_B, CONTEXT - 1, prompt_tokens, kind))
    planned = scratch_bytes(kind, torch.device("cpu"), dtype, 1, CONTEXT)
    assert taken < planned + LIBRARY_BYTES
    assert planned < (1.25 if prompt_tokens else 3) * taken


@pytest.mark.parametrize("prompt_tokens", [0, 4096])
@torch.inference_mode()
def test_choosing_positions_takes_no_more_than_planned(prompt_tokens: int) -> None:
    kind, rows, context = latent_attention(8, 128, 32, indexer=INDEXER, chosen=512), 64, 4096
    layout = KvLayout.of(kind, context // 16, torch.bfloat16)
    kv = layout.view(torch.zeros(layout.layer_bytes, dtype=torch.uint8))
    start, table = context - rows, torch.arange(context // 16)
    numbers = torch.stack((torch.arange(start, context), table[torch.arange(start, context) // 16]), 1)
    q_TNH, keys_T1H = (torch.zeros(rows, heads, kind.head_dim, dtype=torch.bfloat16) for heads in (kind.heads, 1))
    queries = torch.zeros(rows, INDEXER.heads, INDEXER.head_dim, dtype=torch.bfloat16)
    index = IndexRows(queries, torch.zeros(rows, INDEXER.heads), queries[:, 0])

    def attend_once() -> None:
        one = SequenceRows(0, rows, start, prompt_tokens, table)
        attend_chosen(q_TNH, keys_T1H, index, kv, Rows(numbers, table, rows, 0, 0, 1, 1, lambda: [one]), kind)

    planned = scratch_bytes(kind, torch.device("cpu"), torch.bfloat16, rows, context)
    planned += sparse_attention.scratch_bytes(kind, rows, context)
    taken = most_bytes(attend_once) - 2 * rows * kind.heads * kind.rank * torch.bfloat16.itemsize
    assert planned / 3 < taken < planned + LIBRARY_BYTES


@pytest.mark.parametrize("slice_rows", [2048, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_the_head_and_the_embedding_take_no_more_than_planned(dtype: torch.dtype, slice_rows: int) -> None:
    hidden, weight = torch.randn(ROWS, 256).to(dtype), torch.randn(slice_rows, 256).to(dtype)
    some = torch.arange(ROWS)
    norm = most_bytes(lambda: rms_norm(hidden[some], weight[0], 1e-5))
    weights = Weights({}, {"output": DenseMatrix(weight)})
    product = most_bytes(lambda: output_slice(PLAIN, weights, hidden))
    planned = ROWS * head_bytes(256, slice_rows, dtype, "plain", fused=False)
    assert planned / 1.25 < max(norm, product) < planned + LIBRARY_BYTES
    scorer, scored = PromptScorer(CpuDevice(), RowBlocks(), ROWS, ROWS), ScoredRows([], True, READY)
    scores = most_bytes(lambda: scorer.add(scored, 0, ROWS, 0, output_slice(PLAIN, weights, hidden)))
    planned = ROWS * score_bytes(256, slice_rows, dtype, "plain", fused=False)
    assert planned / 1.5 < max(norm, scores) < planned + LIBRARY_BYTES
    decoded = most_bytes(lambda: hidden.to(dtype, copy=True))
    assert decoded <= ROWS * embedding_bytes(256, 64, dtype)
