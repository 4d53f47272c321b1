"""The part of the memory plan that computing a pass takes, beside weights and KV blocks."""

import torch

from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.policies import find_policy
from pipeline.formats.dense import cast_bytes
from pipeline.formats.parts import gives_logits
from pipeline.generation.batching import most_logit_rows
from pipeline.generation.pass_buffers import HIDDEN, LOGITS, ROTARY, PassBuffers
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.records import Records
from pipeline.generation.row_sampler import RowSampler
from pipeline.groups.groups import WeightGroups
from pipeline.models import delta_net
from pipeline.models.activations import embedding_bytes, half_bytes, head_bytes
from pipeline.models.layers import DeltaNet
from pipeline.models.model_config import ModelConfig
from pipeline.models.pass_attention import scratch_bytes
from pipeline.models.row_blocks import RowBlocks
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
    """Rows, activations, logits, tables and numbers of passes of at most so many `tokens`, place by place."""
    first, place = device.places[0].name, device.places[-1].name
    rows = tokens * sum(tensor.length for tensor in groups.embed.tensors) // groups.embed.rows
    invariant = settings.batch_invariant
    blocks = RowBlocks.of(device.block_rows, device.least_rows(dtype), device.repeated_rows, batch_invariant=invariant)
    buffers = PassBuffers.sizes(model, dtype, blocks, tokens, most_logit_rows(settings.max_requests))
    micro_batches = find_policy(settings.policy).micro_batches
    at_a_time = min(2, micro_batches)
    casts = _scratch_bytes(groups, dtype) * at_a_time
    fused = device.torch_device.type == "cuda"
    half = max(half_bytes(one, dtype, fused=fused, by_formula=invariant) for one in set(model.layer_kinds))
    rows_of_half = blocks.most_at_once(-(-blocks.padded(tokens) // micro_batches))
    head = _head_bytes(model, settings, groups, blocks, dtype, fused=fused)
    embedding = embedding_bytes(model.hidden_size, max((one.channels for one in model.ropes), default=0), dtype)
    activations = max(at_a_time * rows_of_half * half, rows_of_half * embedding, head)
    records = Records.most(device, len(groups.groups), micro_batches)
    recorded = {where: nbytes * records for where, nbytes in device.record_bytes.items()}
    if recorded:
        recorded[place] += max(device.repeated_rows) * half + casts
    padded = blocks.padded(tokens)
    scratch = [scratch_bytes(one, device.torch_device, dtype, padded, context_tokens) for one in model.attentions]
    scratch += [delta_net.scratch_bytes(one.mixer) for one in model.layer_kinds if isinstance(one.mixer, DeltaNet)]
    inputs = PassInputs.nbytes(blocks.padded(tokens), settings.max_requests, context_tokens)
    return [
        *(Holding("embedding rows", where, rows, "max_tokens_per_pass") for where in (first, place)),
        Holding("activations", place, activations, "max_tokens_per_pass"),
        *(Holding("activations: recorded kernels", where, nbytes, "") for where, nbytes in recorded.items()),
        *(Holding("activations: weights that are cast or decoded", place, casts, "") for _ in range(bool(casts))),
        Holding("activations: attention", place, max(scratch, default=0), "context_tokens"),
        *(Holding(name, place, nbytes, KNOBS[name]) for name, nbytes in buffers.items()),
        *RowSampler.holdings(device, settings.max_requests, model.vocabulary_size),
        *(Holding("positions and block tables", where, inputs, "max_requests") for where in (first, place)),
    ]


def _head_bytes(
    model: ModelConfig, settings: Config, groups: WeightGroups, blocks: RowBlocks, dtype: torch.dtype, *, fused: bool
) -> int:
    """The most that a slice of the head takes."""
    rows = blocks.most_at_once(blocks.padded(most_logit_rows(settings.max_requests)))
    slice_rows = max(group.matrices[0].rows for group in groups.groups if gives_logits(group.name))
    return rows * head_bytes(model.hidden_size, slice_rows, dtype, model.norm_style, fused=fused)


def _scratch_bytes(groups: WeightGroups, dtype: torch.dtype) -> int:
    """The most that a product, or a norm or bias that is cast, takes beside its weights: a lane has one at a time."""
    matrices = [one.scratch_bytes(dtype) for group in groups.groups for one in group.matrices]
    vectors = [cast_bytes(one, dtype) for group in groups.groups for one in group.vectors]
    return max([*matrices, *vectors])
