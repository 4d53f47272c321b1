"""Puts an open model together: what it holds is planned, then taken, then wired."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from actors.core.trace import Trace
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.config import Config
from pipeline.devices.open import open_devices
from pipeline.devices.port import Device
from pipeline.engine.shared_source import SharedSource
from pipeline.formats import cpu_choice
from pipeline.generation.blueprint import Blueprint, load_kernels, say_remarks
from pipeline.generation.drawn_sections import dealt_at_rates, draw_up_sections
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.pass_rates import PassRates
from pipeline.generation.section_runtime import planned_line
from pipeline.models.model_config import read_config
from pipeline.reading.reading_choice import ReadingChoice, choose_reading
from pipeline.system.promises import give_back, promise, promising

logger = logging.getLogger("penstock")


def build(folder: Path, settings: Config, trace: Trace | None = None) -> ModelRuntime:
    """Open the checkpoint, draw up the plan, and wire the lines. Nothing runs yet.

    Raises ConfigError or CheckpointError before any memory is taken.
    """
    devices, model = open_devices(settings.device, settings.devices), read_config(folder)
    on_cpu = devices[0].torch_device.type == "cpu"
    with contextlib.ExitStack() as undone:
        checkpoint = undone.enter_context(open_checkpoint(folder, direct=settings.reading.get("direct", True)))
        for device in devices:
            undone.callback(device.free)
        load_kernels(model, checkpoint, settings, devices[0])
        with promising:
            drawn = draw_up_sections(model, checkpoint, settings, devices)
            _promise(drawn, devices, folder)
        reading = choose_reading(
            checkpoint.files, settings.reading, beside=devices[0].shares_cores, has_experts=bool(model.expert_kinds)
        )
        with promising:
            rates = _measured_rates(drawn, devices, reading)
            for device in devices:
                give_back(device)  # or what is dealt anew would be planned beside it
            drawn = dealt_at_rates(drawn, devices, rates)
            _promise(drawn, devices, folder)
        say_remarks(drawn[0], settings, devices[0])
        if on_cpu:
            matrices = (matrix for one in drawn for group in one.groups.groups for matrix in group.matrices)
            cpu_choice.choose(matrices, drawn[0].dtype)
        for one in drawn:
            if one.plan.kv.moving:
                states = "" if one.plan.state_room is None else " and recurrent states"
                logger.warning("KV blocks%s %s", states, one.plan.kv)
        lines = [planned_line(one, device) for one, device in zip(drawn, devices, strict=True)]
        shared = SharedSource.of(settings, checkpoint, reading, lines)
        runtime = ModelRuntime(drawn, settings, devices, shared, trace, undone)
        undone.pop_all()
    logger.info("kv room %s", runtime.kv_room)
    if runtime.state_room is not None:
        logger.info("state room %s", runtime.state_room)
    logger.info("pass size %s", runtime.pass_size)
    return runtime


def _promise(drawn: Sequence[Blueprint], devices: Sequence[Device], folder: Path) -> None:
    for one, device in zip(drawn, devices, strict=True):
        promise(device, folder, one.plan.memory)


def _measured_rates(drawn: Sequence[Blueprint], devices: Sequence[Device], reading: ReadingChoice) -> PassRates:
    """Those of this machine, as far as they are known when no pass has run yet."""
    sends = any(one.plans.moved.sent for one in drawn)
    links = [rate for device in devices if sends and (rate := device.link_bytes_per_second()) is not None]
    return PassRates(reading.bytes_per_second, min(links, default=None))
