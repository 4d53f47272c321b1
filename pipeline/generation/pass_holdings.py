"""The part of the memory plan that computing a pass takes, beside weights and KV blocks."""

import torch

from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.policies import find_policy
from pipeline.formats.dense import cast_bytes
from pipeline.formats.matrix import StoredMatrix
from pipeline.formats.parts import gives_logits
from pipeline.generation.batching import most_logit_rows
from pipeline.generation.expert_work import IDS, ExpertWork
from pipeline.generation.host_experts import HostExperts
from pipeline.generation.pass_buffers import HIDDEN, LOGITS, ROTARY, PassBuffers
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.prompt_scores import PromptScorer
from pipeline.generation.records import Records
from pipeline.generation.row_sampler import RowSampler
from pipeline.generation.token_experts import TokenExperts
from pipeline.groups.groups import WeightGroups
from pipeline.models import compressed_attention, delta_net, sparse_attention
from pipeline.models.activations import embedding_bytes, half_bytes, score_bytes, streams_bytes
from pipeline.models.compressed import CompressedAttention
from pipeline.models.latents import OF_HEADS, LatentAttention
from pipeline.models.layers import DeltaNet
from pipeline.models.model_config import ModelConfig
from pipeline.models.pass_attention import scratch_bytes
from pipeline.models.row_blocks import MOST_ROWS, RowBlocks
from pipeline.system.memory_plan import Holding

KNOBS = {HIDDEN: "max_tokens_per_pass", ROTARY: "max_tokens_per_pass", LOGITS: "max_requests"}


def pass_holdings(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    device: Device,
    dtype: torch.dtype,
    context_tokens: int,
    tokens: int,
) -> list[Holding]:
    """Rows, activations, logits, tables and numbers of passes of at most so many `tokens`, place by place.

    Only what computes the first layer has embedding rows, and only what has the head has logits, scores and choices.
    """
    first, place = device.places[0].name, device.places[-1].name
    rows = tokens * sum(tensor.length for tensor in groups.embed.tensors) // groups.embed.rows
    blocks, half = _row_blocks(settings, device, dtype), _half_bytes(model, settings, device, dtype)
    embeds, has_head = groups.groups[0].layer == 0, gives_logits(groups.groups[-1].name)
    logit_rows = most_logit_rows(settings.max_requests) if has_head else 0
    buffers = PassBuffers.sizes(model, dtype, blocks, tokens, logit_rows)
    of_experts = ExpertWork.sizes(model, dtype, blocks, tokens, device.torch_device) if groups.experts else {}
    leaves_some = bool(of_experts and settings.cpu_experts and len(device.places) > 1)
    on_cpu = HostExperts.sizes(model, dtype, tokens) if leaves_some else {}
    of_head = [
        *PromptScorer.holdings(device, blocks, tokens),
        *RowSampler.holdings(device, settings.max_requests, model.vocabulary_size),
    ]
    micro_batches = find_policy(settings.policy).micro_batches
    casts = _scratch_bytes(groups, dtype) * min(2, micro_batches)
    activations = _activation_bytes(model, settings, groups, device, dtype, tokens)
    records = Records.most(device, len(groups.groups), micro_batches)
    recorded = {where: nbytes * records for where, nbytes in device.record_bytes.items()}
    if recorded:
        recorded[place] += max(device.repeated_rows) * half + casts
    padded = blocks.padded(tokens)
    compressed = [one for one in model.attentions if isinstance(one, CompressedAttention)]
    others = [one for one in model.attentions if one not in compressed]
    scratch = [scratch_bytes(one, device.torch_device, dtype, padded, context_tokens) for one in others]
    scratch += [compressed_attention.scratch_bytes(one, context_tokens) for one in compressed]
    latent = [one for one in model.attentions if isinstance(one, LatentAttention)]
    choosing = [sparse_attention.scratch_bytes(one, padded, context_tokens) for one in latent]
    scratch = [max(scratch, default=0) + max(choosing, default=0)]
    scratch += [delta_net.scratch_bytes(one.mixer) for one in model.layer_kinds if isinstance(one.mixer, DeltaNet)]
    inputs = PassInputs.nbytes(blocks.padded(tokens), settings.max_requests, context_tokens)
    return [
        *(Holding("embedding rows", where, rows, "max_tokens_per_pass") for where in (first, place) * embeds),
        Holding("activations", place, activations, "max_tokens_per_pass"),
        *(Holding("activations: recorded kernels", where, nbytes, "") for where, nbytes in recorded.items()),
        *(Holding("activations: weights that are cast or decoded", place, casts, "") for _ in range(bool(casts))),
        Holding("activations: attention", place, max(scratch, default=0), "context_tokens"),
        *(Holding(name, place, nbytes, KNOBS[name]) for name, nbytes in buffers.items()),
        *(Holding(name, place, nbytes, "max_tokens_per_pass") for name, nbytes in of_experts.items() if nbytes),
        *(Holding(IDS, first, of_experts[IDS], "max_tokens_per_pass") for _ in range(bool(of_experts))),
        *(Holding(name, first, nbytes, "cpu_experts") for name, nbytes in on_cpu.items()),
        *_of_tokens(groups, padded, first, place),
        *(of_head if has_head else []),
        *(Holding("positions and block tables", where, inputs, "max_requests") for where in (first, place)),
    ]


def _of_tokens(groups: WeightGroups, rows: int, first: str, place: str) -> list[Holding]:
    """Tables that say which experts a token uses, and what they say of the rows of a pass."""
    nbytes = TokenExperts.nbytes([one.tensors[0].shape[1] for one in groups.tables], rows)
    tables = [Holding("experts of each token", first, TokenExperts.table_bytes(groups.tables), "")]
    passes = [
        Holding("experts by token", where, nbytes, "max_tokens_per_pass") for where in dict.fromkeys((first, place))
    ]
    return [*tables, *passes] if groups.tables else []


def rows_scored_at_once(
    model: ModelConfig, settings: Config, groups: WeightGroups, device: Device, dtype: torch.dtype, tokens: int
) -> int:
    """Of how many rows of prompts the head computes logits at a time: they take no more than what is planned anyway."""
    activations = _activation_bytes(model, settings, groups, device, dtype, tokens)
    return min(MOST_ROWS, activations // _score_bytes(model, groups, device, dtype))


def _activation_bytes(
    model: ModelConfig, settings: Config, groups: WeightGroups, device: Device, dtype: torch.dtype, tokens: int
) -> int:
    """The most that a half of a layer takes, the embedding, or a slice of the head for as many rows as get logits."""
    blocks, micro_batches = _row_blocks(settings, device, dtype), find_policy(settings.policy).micro_batches
    rows = blocks.most_at_once(-(-blocks.padded(tokens) // micro_batches))
    logit_rows = blocks.most_at_once(blocks.padded(most_logit_rows(settings.max_requests)))
    halves = min(2, micro_batches) * _half_bytes(model, settings, device, dtype)
    embedding = embedding_bytes(model.hidden_size, max((one.channels for one in model.ropes), default=0), dtype)
    return max(rows * halves, rows * embedding, logit_rows * _score_bytes(model, groups, device, dtype))


def _row_blocks(settings: Config, device: Device, dtype: torch.dtype) -> RowBlocks:
    invariant = settings.batch_invariant
    return RowBlocks.of(device.block_rows, device.least_rows(dtype), device.repeated_rows, batch_invariant=invariant)


def _half_bytes(model: ModelConfig, settings: Config, device: Device, dtype: torch.dtype) -> int:
    """The most that a half of a layer takes for a row."""
    fused, invariant = device.torch_device.type == "cuda", settings.batch_invariant
    return max(half_bytes(one, dtype, fused=fused, by_formula=invariant) for one in set(model.layer_kinds))


def _score_bytes(model: ModelConfig, groups: WeightGroups, device: Device, dtype: torch.dtype) -> int:
    """The most that a slice of the head takes for a row."""
    slice_rows = max((one.matrices[0].rows for one in groups.groups if gives_logits(one.name)), default=0)
    fused = device.torch_device.type == "cuda"
    streams, size = model.outside.streams, model.hidden_size
    summed = 0 if streams is None else streams_bytes(size, streams, dtype) + model.hidden_width * dtype.itemsize
    return max(summed, score_bytes(size, slice_rows, dtype, model.norm_style, fused=fused))


def _scratch_bytes(groups: WeightGroups, dtype: torch.dtype) -> int:
    """The most that a product, or a norm or bias that is cast, takes beside its weights: a lane has one at a time."""
    every = [*groups.groups, *groups.experts]
    matrices = [_product_bytes(one, dtype) for group in every for one in group.matrices]
    vectors = [cast_bytes(one, dtype) for group in every for one in group.vectors]
    return max([*matrices, *vectors])


def _product_bytes(matrix: StoredMatrix, dtype: torch.dtype) -> int:
    """What a product takes; of what is multiplied head by head, all is decoded first."""
    scratch = matrix.scratch_bytes(dtype)
    return scratch + (matrix.rows * matrix.columns * dtype.itemsize if scratch and matrix.short == OF_HEADS else 0)
