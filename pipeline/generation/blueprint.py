"""All that is known about a model before any memory is taken, and a plan that fits or is refused."""

import gc
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.expert_room import ExpertRoom, lay_out_experts
from pipeline.engine.plan import lay_out
from pipeline.errors import ConfigError
from pipeline.formats import cpu_choice
from pipeline.generation.folder import tokenizer_bytes
from pipeline.generation.lone_experts import lone_experts
from pipeline.generation.model_plan import ModelPlan
from pipeline.generation.part import Agreed, Part
from pipeline.generation.pass_rates import PassRates
from pipeline.generation.sized_plans import SizedPlans, make_plans
from pipeline.generation.what_would_fit import what_would_fit
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroups, plan_groups
from pipeline.groups.remarks import remarks
from pipeline.models.model_config import ModelConfig
from pipeline.models.pass_attention import is_compiled
from pipeline.models.ropes import DynamicScaling
from pipeline.models.specs import expert_specs, group_specs
from pipeline.system.host_memory import give_freed_back
from pipeline.system.sizes import human_bytes, parse_bytes

logger = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that is known about a model, or the layers of it that one section computes, before any memory is taken.

    `groups`, `catalog` and `experts` are those of the `part`; `whole` has all of the model. `plan` is one of `plans`,
    at assumed `rates` until `at_rates` says others.
    """

    model: ModelConfig
    checkpoint: Checkpoint
    settings: Config
    whole: WeightGroups
    groups: WeightGroups
    dtype: torch.dtype
    part: Part
    catalog: WeightCatalog
    experts: ExpertRoom | None
    plans: SizedPlans
    plan: ModelPlan
    rates: PassRates

    def at_rates(self, rates: PassRates) -> "Blueprint":
        """The same with the plan that is best at these rates."""
        return replace(self, plan=self.plans.best(rates), rates=rates)


@dataclass(frozen=True, slots=True)
class Drawing:
    """What all blueprints of one model are drawn from."""

    model: ModelConfig
    checkpoint: Checkpoint
    settings: Config
    groups: WeightGroups

    @classmethod
    def of(cls, model: ModelConfig, checkpoint: Checkpoint, settings: Config) -> "Drawing":
        """Find the groups of a checkpoint. Raises ConfigError or CheckpointError."""
        specs = group_specs(model) | expert_specs(model)
        for name in ("gpu_experts", "host_experts", "cpu_experts"):
            if (said := getattr(settings, name)) not in (None, False) and not model.expert_kinds:
                have = f"{checkpoint.folder} ({model.family}), which has none"
                raise ConfigError(f"{name}={said}: need a model with experts, have {have}; leave {name} out")
        groups = plan_groups(specs, checkpoint, model.quantization.format_of, model.drafting_layers)
        return cls(model, checkpoint, settings, groups)

    def drawn(
        self,
        device: Device,
        layers: Collection[int] | None = None,
        devices: Sequence[Device] | None = None,
        agreed: Agreed | None = None,
    ) -> Blueprint:
        """Add up the memory of one of several `devices`, which computes these layers; or that of the only one.

        What sections have `agreed` on is kept to. Raises ConfigError. Whether the plan fits is for the caller to check.
        """
        give_freed_back()
        model, settings = self.model, self.settings
        dtype = _computing_dtype(model, self.groups, settings)
        own = range(model.layers + 1) if layers is None else layers
        part = Part.of(model, self.groups, dtype, own, device, devices or [device])
        groups = self.groups.of_layers(part.layers)
        catalog = lay_out(groups.groups, settings, device)
        tokenizer = tokenizer_bytes(self.checkpoint.folder, model.vocabulary_size) if 0 in part.layers else 0
        laid_out = lay_out_experts(groups.experts, device)
        experts = None if laid_out is None else ExpertRoom(laid_out, settings, device)
        plans = make_plans(model, settings, groups, catalog, device, dtype, tokenizer, experts, part, agreed)
        plan, whole = plans.best(rates := PassRates()), self.groups
        drawn = (whole, groups, dtype, part, catalog, experts, plans, plan, rates)
        return Blueprint(model, self.checkpoint, settings, *drawn)


def load_kernels(model: ModelConfig, checkpoint: Checkpoint, settings: Config, device: Device) -> None:
    """Load what compiles kernels for the CPU, where some may be used, so that a plan finds its memory taken."""
    on_cpu, quantised = device.torch_device.type == "cpu", bool(model.quantization.rules)
    leaves_experts = bool(settings.cpu_experts and model.expert_kinds and not on_cpu)
    # Of the embedding rows are taken, and the head is multiplied by in slices.
    entries = [one for one in checkpoint.tensors.values() if one.shape[:1] != (model.vocabulary_size,)]
    stored, attends = [(one.dtype, one.length) for one in entries], any(map(is_compiled, model.attentions))
    cpu_choice.load_kernels(
        stored, settings.dtype, on_cpu=on_cpu, quantised=quantised, attends=attends, leaves_experts=leaves_experts
    )


def draw_up(
    model: ModelConfig,
    checkpoint: Checkpoint,
    settings: Config,
    device: Device,
) -> Blueprint:
    """Find the groups of a checkpoint and add up the memory.

    Raises ConfigError or CheckpointError. Whether the plan fits is for the caller to check.
    """
    return Drawing.of(model, checkpoint, settings).drawn(device)


def draw_up_fitting(
    model: ModelConfig,
    checkpoint: Checkpoint,
    settings: Config,
    device: Device,
) -> Blueprint:
    """The same; what cannot fit is refused by a ConfigError with need, have, and settings with which it would fit."""
    drawn = draw_up(model, checkpoint, settings, device)
    if drawn.plan.memory.fits():
        return drawn
    if device.pools:
        gc.collect()  # a closed model may still be there, though no reference to it is left
        drawn = draw_up(model, checkpoint, settings, device)

    def changed(changes: Mapping[str, Any]) -> ModelPlan | None:
        try:  # a limit may be so low that nothing is left of it
            return draw_up(model, checkpoint, replace(settings, **changes), device).plan
        except ConfigError:
            return None

    if not drawn.plan.memory.fits():
        raise ConfigError(f"{drawn.plan.memory.shortage()}; {what_would_fit(drawn.plan, settings, changed)}")
    return drawn


def _computing_dtype(model: ModelConfig, groups: WeightGroups, settings: Config) -> torch.dtype:
    """What is said, else what config.json declares, to which transformers casts all, else how they are stored."""
    if settings.dtype != "auto":
        said: torch.dtype = getattr(torch, settings.dtype)
        return said
    found = model.dtype or groups.dtype
    return torch.float32 if found == torch.float64 else found


def say_remarks(drawn: Blueprint, settings: Config, device: Device) -> None:
    """Log what people should know about a checkpoint, and about a limit that no memory stands behind."""
    for place, name in drawn.plan.memory.limited_by.items():
        have_bytes = drawn.plan.memory.available[place] * drawn.plan.memory.divided.get(place, 1)
        said = getattr(settings, name)
        if said is not None and parse_bytes(name, said, have_bytes) > have_bytes:
            have = human_bytes(have_bytes)
            logger.warning("%s is %s, of which %s can be had now; the plan keeps to that", name, said, have)
    if settings.cpu_experts and len(drawn.plan.slots) == 1:
        logger.warning("cpu_experts=%s has no effect: what computes here is the CPU", settings.cpu_experts)
    if device.torch_device.type == "cuda" and (alone := lone_experts(drawn.model, drawn.whole)) is not None:
        logger.warning("%s: %s", drawn.checkpoint.folder, alone)
    auto_dtype = drawn.dtype if settings.dtype == "auto" else None
    for remark in remarks(drawn.checkpoint, drawn.whole, auto_dtype, drawn.model.quantization.activations):
        logger.warning("%s", remark)
    dynamic = [rope.scaling for rope in drawn.model.ropes if isinstance(rope.scaling, DynamicScaling)]
    if dynamic and drawn.model.rope_length(drawn.plan.context_tokens):
        most = dynamic[0].original_max_positions
        logger.warning(
            "rope_scaling dynamic: beyond %d tokens all frequencies change with every token, so for each the whole "
            "sequence is computed anew; context_tokens=%d refuses what is longer",
            most,
            most,
        )
