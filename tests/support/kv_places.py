"""Settings under which what so many layers keep has room on the device and in host memory."""

from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.generation.build import build


def settings_with_room(
    checkpoint: Path, folder: Path, device_layers: int, host_layers: int, **settings: Any
) -> dict[str, Any]:
    """What `Model.open` needs, so that everything else fits exactly; the other layers live on the disk.

    Where layers differ, it is room for so many of the largest.
    """
    runtime = build(checkpoint, Config(**{**settings, "residency": False}))
    runtime.device.free()
    layer_bytes = max(layout.layer_bytes for layout in runtime.cache.memory.layouts.values())
    kept = {name for layout in runtime.cache.memory.layouts.values() for name in layout.contents}
    fixed = [one for one in runtime.plan.holdings if not any(name in one.holder for name in kept)]
    limits = {
        place.memory_setting: sum(one.nbytes for one in fixed if one.place == place.name) + layers * layer_bytes
        for place, layers in zip(runtime.device.places, (host_layers, device_layers), strict=False)
    }
    return {**settings, **limits, "kv_disk": folder}
