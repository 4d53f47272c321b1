"""The page on which everything is put together: budgets added up holder by holder, the line wired."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from actors.core.budget import Budget
from actors.core.line import Line
from actors.core.ports import PrefetchPolicy
from actors.core.trace import Trace
from pipeline.config import Config
from pipeline.devices.open import AnyDevice, open_device
from pipeline.errors import ConfigError
from pipeline.memory import Holding, MemoryPlan, available_host_bytes, slot_counts
from pipeline.models.config import ModelConfig, read_config
from pipeline.models.families import group_specs
from pipeline.policies import find_policy, fit_policy
from pipeline.program import GenerationProgram
from pipeline.sequences.batching import Batcher
from pipeline.sequences.blocks import BlockPool, blocks_for
from pipeline.sequences.kv import KeyValueBlocks, kv_bytes, kv_token_bytes
from pipeline.sequences.pass_inputs import PassInputs
from pipeline.weights.catalog import WeightCatalog
from pipeline.weights.checkpoint import open_checkpoint
from pipeline.weights.embedding import EmbeddingRows
from pipeline.weights.groups import WeightGroups, plan_groups
from pipeline.weights.source import WeightSource
from pipeline.wiring import ACTORS, Parts, Wired, slots_until_computed, wire

CLOCK = time.perf_counter
DEFAULT_CONTEXT_TOKENS = 4096
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that an open model owns."""

    folder: Path
    config: ModelConfig
    settings: Config
    dtype: torch.dtype
    context_tokens: int
    plan: MemoryPlan
    device: AnyDevice
    catalog: WeightCatalog
    source: WeightSource
    embedding: EmbeddingRows
    program: GenerationProgram
    policy: PrefetchPolicy
    wired: Wired

    @property
    def line(self) -> Line:
        """The five actors, and the user's own between them."""
        return self.wired.line

    async def aclose(self) -> None:
        """Give everything back; the line must have stopped."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.source.aclose)
            stack.push_async_callback(self.device.aclose)
            stack.push_async_callback(self.program.close)


def build(folder: Path, settings: Config, trace: Trace | None = None) -> Runtime:
    """Read the headers of the checkpoint, add up the memory, and wire the line. Nothing runs yet.

    Raises ConfigError or CheckpointError before any memory is taken.
    """
    model = read_config(folder)
    checkpoint = open_checkpoint(folder)
    groups = plan_groups(group_specs(model), checkpoint)
    dtype = DTYPES[groups.dtype] if settings.dtype == "auto" else getattr(torch, settings.dtype)
    context_tokens = _context_tokens(model, settings)
    device = open_device(settings.device)
    fewest_slots = settings.gpu_groups if device.unified else min(settings.gpu_groups, settings.host_groups)
    catalog = WeightCatalog(groups.groups, packed=device.packed, two_kinds=fewest_slots > 1)
    slots = _slots(settings, catalog, device)
    plan = _plan(model, settings, groups, slots, device, dtype, context_tokens)
    plan.check()
    counts = slots_until_computed({kind: count for kind, (count, _) in (slots[1] or slots[0]).items()}, settings.insert)
    policy = fit_policy(find_policy(settings.policy), counts)
    source = WeightSource(catalog.host, checkpoint.files, lanes=settings.reader_lanes, chunk_bytes=settings.chunk_bytes)
    try:
        embedding = EmbeddingRows(groups.embed, source, device, settings.max_tokens_per_pass)
        blocks = blocks_for(_kv_tokens(settings, context_tokens))
        program = GenerationProgram(
            model,
            catalog,
            device,
            embedding,
            KeyValueBlocks(model, blocks, dtype, device),
            Batcher(BlockPool(blocks), settings.max_requests),
            PassInputs(device, embedding.most_rows, settings.max_requests, context_tokens),
            dtype,
            policy.micro_batches,
        )
        host, on_device = _budgets(slots, device)
        wired = wire(
            Parts(
                catalog=catalog,
                source=source,
                device=device,
                program=program,
                policy=policy,
                host_budget=host,
                device_budget=on_device,
                slots=counts,
                # A queue never limits the depth before the budget behind it does, unless the user sets it so.
                queues=dict.fromkeys(ACTORS[1:], settings.gpu_groups) | dict(settings.queues),
                insert=settings.insert,
                clock=CLOCK,
                trace=trace or Trace(recording=False),
            )
        )
    except BaseException:
        device.free()
        raise
    return Runtime(
        folder, model, settings, dtype, context_tokens, plan, device, catalog, source, embedding, program, policy, wired
    )


def _budgets(slots: tuple["Slots", "Slots"], device: AnyDevice) -> tuple[Budget, Budget | None]:
    """The memory behind the slots; no device budget where the two places are one."""
    host, on_device = slots
    host_cells = {kind: [device.host_memory(size) for _ in range(count)] for kind, (count, size) in host.items()}
    cells = {kind: [device.device_memory(size) for _ in range(count)] for kind, (count, size) in on_device.items()}
    return Budget("host", host_cells, CLOCK), Budget("device", cells, CLOCK) if cells else None


Slots = dict[str, tuple[int, int]]
"""By kind of slot: how many, and of how many bytes each."""


def _slots(settings: Config, catalog: WeightCatalog, device: AnyDevice) -> tuple[Slots, Slots]:
    """The slots in host memory and on the device.

    Memory that is one has one budget: the uploader hands the slot on, and the group budget bounds the host slots.
    """
    host_bytes, device_bytes = catalog.slot_bytes("host"), catalog.slot_bytes("device")
    on_device = slot_counts(settings.gpu_groups, two_kinds=catalog.two_kinds)
    if device.unified:
        return {kind: (count, host_bytes[kind]) for kind, count in on_device.items()}, {}
    in_host = slot_counts(settings.host_groups, two_kinds=catalog.two_kinds)
    return (
        {kind: (count, host_bytes[kind]) for kind, count in in_host.items()},
        {kind: (count, device_bytes[kind]) for kind, count in on_device.items()},
    )


def _context_tokens(model: ModelConfig, settings: Config) -> int:
    if settings.context_tokens is None:
        return min(model.max_positions, DEFAULT_CONTEXT_TOKENS)
    if settings.context_tokens > model.max_positions:
        raise ConfigError(
            f"context_tokens: the model was made for {model.max_positions} positions, have {settings.context_tokens}"
        )
    return settings.context_tokens


def _kv_tokens(settings: Config, context_tokens: int) -> int:
    if settings.kv_tokens is None:
        return context_tokens
    if settings.kv_tokens < context_tokens:
        raise ConfigError(
            f"kv_tokens: need at least the {context_tokens} of context_tokens, so that any request can be held alone, "
            f"have {settings.kv_tokens}"
        )
    return settings.kv_tokens


def _plan(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    slots: tuple[Slots, Slots],
    device: AnyDevice,
    dtype: torch.dtype,
    context_tokens: int,
) -> MemoryPlan:
    """Everything that is held from open to close. On the CPU the two places are one."""
    host_slots, device_slots = slots
    device_place = "host" if device.torch_device.type == "cpu" else "device"
    blocks = blocks_for(_kv_tokens(settings, context_tokens))
    pass_tokens = settings.max_tokens_per_pass
    row_bytes = groups.embed.length // groups.embed.shape[0]
    logits_bytes = settings.max_requests * model.vocabulary_size * torch.float32.itemsize
    activation_bytes = pass_tokens * (4 * model.hidden_size + 3 * model.ffn_size) * max(dtype.itemsize, 4)
    read_bytes = context_tokens * kv_token_bytes(model, dtype) // model.layers
    kv_knob = "context_tokens" if settings.kv_tokens is None else "kv_tokens"
    input_bytes = PassInputs.nbytes(pass_tokens, settings.max_requests, context_tokens)
    holdings = (
        *(Holding(f"{n} {k} slots", "host", n * size, _host_knob(device)) for k, (n, size) in host_slots.items()),
        *(Holding(f"{n} {k} slots", device_place, n * size, "gpu_groups") for k, (n, size) in device_slots.items()),
        Holding("KV blocks", device_place, kv_bytes(model, blocks, dtype), kv_knob),
        Holding("embedding rows", "host", pass_tokens * row_bytes, "max_tokens_per_pass"),
        Holding("embedding rows", device_place, pass_tokens * row_bytes, "max_tokens_per_pass"),
        Holding("activations", device_place, activation_bytes, "max_tokens_per_pass"),
        Holding("activations: KV of one request and layer", device_place, read_bytes, "context_tokens"),
        Holding("logits", "host", logits_bytes, "max_requests"),
        Holding("logits", device_place, logits_bytes, "max_requests"),
        Holding("positions and block tables", "host", input_bytes, "max_requests"),
        Holding("positions and block tables", device_place, input_bytes, "max_requests"),
    )
    available = {"host": available_host_bytes()}
    if device_place == "device":
        # What torch keeps for reuse counts as free: a model that was closed leaves its memory there.
        kept = torch.cuda.memory_reserved(device.torch_device) - torch.cuda.memory_allocated(device.torch_device)
        available["device"] = torch.cuda.mem_get_info(device.torch_device)[0] + kept
    return MemoryPlan(holdings, available)


def _host_knob(device: AnyDevice) -> str:
    return "gpu_groups" if device.unified else "host_groups"
