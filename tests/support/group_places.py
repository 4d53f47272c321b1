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
    shares = {"device": device_share, "host": host_share}
    if runtime.device.unified:
        shares = {"host": device_share + host_share}
    limits = {
        f"{'gpu' if place == 'device' else 'host'}_memory": runtime.plan.need(place)
        + int(share * sum(runtime.catalog.group_bytes(place).values()))
        for place, share in shares.items()
    }
    return {**settings, "kv_tokens": runtime.kv_room.tokens, **limits}
