"""Settings under which the KV blocks of so many layers have room on the device and in host memory."""

from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.generation.build import build


def settings_with_room(
    checkpoint: Path, folder: Path, device_layers: int, host_layers: int, **settings: Any
) -> dict[str, Any]:
    """What `Model.open` needs, so that everything else fits exactly; the other layers live on the disk."""
    runtime = build(checkpoint, Config(**{**settings, "residency": False}))
    runtime.device.free()
    layer_bytes = runtime.cache.memory.layouts[0].layer_bytes
    fixed = [one for one in runtime.plan.holdings if "KV blocks" not in one.holder]
    limits = {
        place.memory_setting: sum(one.nbytes for one in fixed if one.place == place.name) + layers * layer_bytes
        for place, layers in zip(runtime.device.places, (host_layers, device_layers), strict=False)
    }
    return {**settings, **limits, "kv_disk": folder}
