"""Settings under which a share of all weight groups has room on the device and in host memory."""

from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.generation.build import build


def settings_with_groups(checkpoint: Path, device_share: float, host_share: float, **settings: Any) -> dict[str, Any]:
    """What `Model.open` needs, so that everything else fits exactly, KV blocks with the room that no limit leaves them.

    Where memory is one, the shares add up.
    """
    runtime = build(checkpoint, Config(**settings, residency=False))
    runtime.device.free()
    places = runtime.device.places
    shares = (device_share + host_share,) if len(places) == 1 else (host_share, device_share)
    limits = {
        place.memory_setting: runtime.plan.need(place.name)
        + int(share * sum(runtime.catalog.group_bytes(place.name).values()))
        for place, share in zip(places, shares, strict=True)
    }
    return {**settings, "kv_tokens": runtime.kv_room.tokens, **limits}
