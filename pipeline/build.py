"""The page on which everything is put together: budgets added up holder by holder, the line wired."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from actors.compute_scheduler import ComputeScheduler
from actors.core.budget import Budget
from actors.core.line import Line
from actors.core.trace import Trace
from actors.disk_reader import DiskReader
from actors.gpu_uploader import GpuUploader
from actors.pinned_stager import PinnedStager
from actors.prefetch_planner import PrefetchPlanner
from pipeline.config import ACTORS, Config
from pipeline.devices import AnyDevice
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice
from pipeline.errors import ConfigError
from pipeline.memory import Holding, MemoryPlan, available_host_bytes
from pipeline.models.config import ModelConfig, read_config
from pipeline.models.families import group_specs
from pipeline.program import GenerationProgram
from pipeline.sequences.kv import KeyValueCache, kv_bytes
from pipeline.weights.catalog import WeightCatalog
from pipeline.weights.checkpoint import open_checkpoint
from pipeline.weights.embedding import EmbeddingRows
from pipeline.weights.groups import WeightGroups, plan_groups
from pipeline.weights.source import WeightSource

DEFAULT_CONTEXT_TOKENS = 4096
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that an open model owns."""

    config: ModelConfig
    dtype: torch.dtype
    context_tokens: int
    plan: MemoryPlan
    device: AnyDevice
    catalog: WeightCatalog
    source: WeightSource
    embedding: EmbeddingRows
    program: GenerationProgram
    line: Line

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
    device = _open_device(settings.device)
    fewest_slots = settings.gpu_groups if device.unified else min(settings.gpu_groups, settings.host_groups)
    catalog = WeightCatalog(groups.groups, packed=device.packed, two_kinds=fewest_slots > 1)
    plan = _plan(model, settings, groups, catalog, device, dtype, context_tokens)
    plan.check()
    source = WeightSource(catalog.host, checkpoint.files, lanes=settings.reader_lanes, chunk_bytes=settings.chunk_bytes)
    try:
        embedding = EmbeddingRows(groups.embed, source, device, min(settings.max_tokens_per_pass, context_tokens))
        cache = KeyValueCache(model, context_tokens, dtype, device)
        program = GenerationProgram(model, catalog, device, embedding, cache, dtype)
        line = _wire(settings, catalog, device, source, program, trace)
    except BaseException:
        device.free()
        raise
    return Runtime(model, dtype, context_tokens, plan, device, catalog, source, embedding, program, line)


def _wire(
    settings: Config,
    catalog: WeightCatalog,
    device: AnyDevice,
    source: WeightSource,
    program: GenerationProgram,
    trace: Trace | None,
) -> Line:
    clock = time.perf_counter
    host_slots, device_slots = _slots(settings, catalog, device)
    host = Budget(
        "host", {k: [device.host_memory(size) for _ in range(n)] for k, (n, size) in host_slots.items()}, clock
    )
    memory = None
    if device_slots:
        memory = Budget(
            "device",
            {k: [device.device_memory(size) for _ in range(n)] for k, (n, size) in device_slots.items()},
            clock,
        )
    # A queue never limits the depth before the budget behind it does, unless the user sets it so.
    queues = dict.fromkeys(ACTORS[1:], settings.gpu_groups) | dict(settings.queues)
    line = (
        Line(PrefetchPlanner(catalog.order), catalog=catalog, clock=clock, trace=trace)
        .then(DiskReader(source, host), queue=queues["disk_reader"])
        .then(PinnedStager(), queue=queues["pinned_stager"])
        .then(GpuUploader(device, memory), queue=queues["gpu_uploader"])
        .then(ComputeScheduler(program), queue=queues["compute_scheduler"])
    )
    for name, stages in settings.insert.items():
        line.insert(name, stages)
    return line


Slots = dict[str, tuple[int, int]]
"""By kind of slot: how many, and of how many bytes each."""


def _slots(settings: Config, catalog: WeightCatalog, device: AnyDevice) -> tuple[Slots, Slots]:
    """The slots in host memory and on the device.

    Memory that is one has one budget: the uploader hands the slot on, and the group budget bounds the host slots.
    """
    host_bytes, device_bytes = catalog.slot_bytes("host"), catalog.slot_bytes("device")
    if device.unified:
        return {k: (n, host_bytes[k]) for k, n in _counts(settings.gpu_groups, catalog).items()}, {}
    return (
        {k: (n, host_bytes[k]) for k, n in _counts(settings.host_groups, catalog).items()},
        {k: (n, device_bytes[k]) for k, n in _counts(settings.gpu_groups, catalog).items()},
    )


def _counts(groups: int, catalog: WeightCatalog) -> dict[str, int]:
    """How many slots of each kind a budget of so many groups has: half each, the odd one large.

    Attn and ffn groups differ by a factor of 4 to 7 in size, so one-size slots would waste most of the memory
    (design.md, section 5). A single slot must hold either kind.
    """
    return {"attn": groups // 2, "ffn": groups - groups // 2} if catalog.two_kinds else {"ffn": groups}


def _context_tokens(model: ModelConfig, settings: Config) -> int:
    if settings.context_tokens is None:
        return min(model.max_positions, DEFAULT_CONTEXT_TOKENS)
    if settings.context_tokens > model.max_positions:
        raise ConfigError(
            f"context_tokens: the model was made for {model.max_positions} positions, have {settings.context_tokens}"
        )
    return settings.context_tokens


def _plan(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    catalog: WeightCatalog,
    device: AnyDevice,
    dtype: torch.dtype,
    context_tokens: int,
) -> MemoryPlan:
    """Everything that is held from open to close. On the CPU the two places are one."""
    host_slots, device_slots = _slots(settings, catalog, device)
    device_place = "host" if device.torch_device.type == "cpu" else "device"
    pass_tokens = min(settings.max_tokens_per_pass, context_tokens)
    row_bytes = groups.embed.length // groups.embed.shape[0]
    logits_bytes = model.vocabulary_size * torch.float32.itemsize
    activation_bytes = pass_tokens * (4 * model.hidden_size + 3 * model.ffn_size) * max(dtype.itemsize, 4)
    holdings = (
        *(Holding(f"{n} {k} slots", "host", n * size, _host_knob(device)) for k, (n, size) in host_slots.items()),
        *(Holding(f"{n} {k} slots", device_place, n * size, "gpu_groups") for k, (n, size) in device_slots.items()),
        Holding("KV cache", device_place, kv_bytes(model, context_tokens, dtype), "context_tokens"),
        Holding("embedding rows", "host", pass_tokens * row_bytes, "max_tokens_per_pass"),
        Holding("embedding rows", device_place, pass_tokens * row_bytes, "max_tokens_per_pass"),
        Holding("activations", device_place, activation_bytes, "max_tokens_per_pass"),
        Holding("logits", "host", logits_bytes, "nothing: the vocabulary sets it"),
        Holding("logits", device_place, logits_bytes, "nothing: the vocabulary sets it"),
    )
    available = {"host": available_host_bytes()}
    if device_place == "device":
        # What torch keeps for reuse counts as free: a model that was closed leaves its memory there.
        kept = torch.cuda.memory_reserved(device.torch_device) - torch.cuda.memory_allocated(device.torch_device)
        available["device"] = torch.cuda.mem_get_info(device.torch_device)[0] + kept
    return MemoryPlan(holdings, available)


def _host_knob(device: AnyDevice) -> str:
    return "gpu_groups" if device.unified else "host_groups"


def _open_device(name: str) -> AnyDevice:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return CudaDevice() if name == "cuda" else CpuDevice(copy=name == "cpu-copy")
