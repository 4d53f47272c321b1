"""Opens a line for any program over any groups: tensors of safetensors files, by the names that the program gives."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from actors.core.ports import Program
from actors.core.trace import Trace
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.devices.open import open_device
from pipeline.engine.plan import Planning, lay_out
from pipeline.engine.runtime import Runtime
from pipeline.engine.settings import EngineSettings
from pipeline.engine.shared_source import PlannedLine, SharedSource
from pipeline.errors import ConfigError, shown
from pipeline.groups.groups import Specs, find_groups
from pipeline.reading.reading_choice import choose_reading
from pipeline.system.memory_plan import Holding
from pipeline.system.promises import promise, promising


def open_program(
    folder: Path | str,
    specs: Specs,
    make: Callable[[Runtime], Program],
    settings: EngineSettings | None = None,
    *,
    passes: int | None = None,
    holdings: Sequence[Holding] = (),
    trace: Trace | None = None,
) -> Runtime:
    """Open a folder of safetensors files for a program of yours. `Runtime.run` runs it, `Runtime.aclose` closes it.

    Args:
        folder: where the files lie.
        specs: the tensors of each group, by layer and part. Groups travel, and are computed, in `Program.order`.
        make: makes the program, from a runtime that lacks only that: its `catalog` gives a group's tensors, its
            `device` launches computations.
        settings: how the line runs; what `EngineSettings` says by default if not given.
        passes: how many there are; without end if not given.
        holdings: memory that the program takes itself, for the memory plan.
        trace: collects the spans of all actors.

    Raises ConfigError or CheckpointError before any memory is taken.
    """
    settings = settings or EngineSettings()
    if not isinstance(settings, EngineSettings):
        raise ConfigError(f"settings: need EngineSettings(...), have {shown(settings)}")
    if not specs:
        raise ConfigError("specs: need at least one group, have none")
    device = open_device(settings.device, settings.devices)
    with contextlib.ExitStack() as undone:
        checkpoint = undone.enter_context(open_checkpoint(folder, direct=settings.reading.get("direct", True)))
        undone.callback(device.free)
        groups = find_groups(specs, checkpoint)
        catalog = lay_out(groups, settings, device)
        with promising:
            plan = Planning.of(settings, catalog, device, holdings).plan()
            if not plan.memory.fits():
                raise ConfigError(plan.memory.shortage())
            promise(device, checkpoint.folder, plan.memory)
        reading = choose_reading(checkpoint.files, settings.reading, beside=device.shares_cores, has_experts=False)
        line = PlannedLine(groups, catalog, device, plan)
        runtime = Runtime(settings, line, SharedSource.of(settings, checkpoint, reading, [line]))
        program = make(runtime)
        _check_order(program, specs)
        runtime.wire(program, trace=trace, passes=passes)
        undone.pop_all()
    return runtime


def _check_order(program: Program, specs: Specs) -> None:
    """Raises ConfigError for a program that names no group, or one that no tensors were given for."""
    order = getattr(program, "order", ())
    if not order:
        raise ConfigError(f"{type(program).__name__}.order: need the groups of a pass, (layer, part) each; have none")
    if unknown := [key for key in order if key not in specs]:
        raise ConfigError(f"{type(program).__name__}.order: need groups of specs; have {shown(unknown[0])}")
