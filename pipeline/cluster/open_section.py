"""Opens one section of a model in a process of its own."""

import contextlib
from collections.abc import Collection
from pathlib import Path

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.engine.shared_source import SharedSource
from pipeline.formats import cpu_choice
from pipeline.generation.blueprint import load_kernels
from pipeline.generation.drawn_sections import draw_up_section
from pipeline.generation.section_runtime import Lose, SectionRuntime, planned_line
from pipeline.models.model_config import read_config
from pipeline.reading.reading_choice import choose_reading
from pipeline.system.promises import promise, promising


def open_section(
    folder: Path, settings: Config, layers: Collection[int], kv_tokens: int, pass_tokens: int, lose: Lose
) -> SectionRuntime:
    """The section of these layers, of which that behind the last of the model is the head. Nothing runs yet.

    Raises ConfigError or CheckpointError before any memory is taken.
    """
    device, model = open_device(settings.device), read_config(folder)
    with contextlib.ExitStack() as undone:
        checkpoint = undone.enter_context(open_checkpoint(folder, direct=settings.reading.get("direct", True)))
        undone.callback(device.free)
        on_cpu = device.torch_device.type == "cpu"
        load_kernels(model, checkpoint, settings, device)
        with promising:
            drawn = draw_up_section(model, checkpoint, settings, device, layers, kv_tokens, pass_tokens)
            promise(device, checkpoint.folder, drawn.plan.memory)
        reading = choose_reading(
            checkpoint.files, settings.reading, beside=device.shares_cores, has_experts=bool(model.expert_kinds)
        )
        if on_cpu:
            cpu_choice.choose((one for group in drawn.groups.groups for one in group.matrices), drawn.dtype)
        shared = SharedSource.of(settings, checkpoint, reading, [planned_line(drawn, device)])
        runtime = SectionRuntime(drawn, settings, device, shared, lose, undone)
        undone.pop_all()
    return runtime
