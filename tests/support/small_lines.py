"""Simulated lines of a few layers, told in milliseconds."""

from typing import Any

from pipeline.tools.simulation.sim_line import SimLine, sim_line
from pipeline.tools.simulation.timings import LayerTimings

HARDLY_MS = 0.001


def layer_timings(
    *,
    layers: int = 4,
    transfer_ms: float = 100.0,
    disk_ms: float = HARDLY_MS,
    attn_ms: float = 80.0,
    ffn_ms: float = 120.0,
    check_ms: float = 0.0,
    kv_ms: float = 0.0,
) -> LayerTimings:
    """Both groups of a layer take the same to read and to move; `disk_ms=0` makes one link of the two hops."""
    return LayerTimings(
        layers=layers,
        attn=attn_ms / 1000,
        ffn=ffn_ms / 1000,
        attn_io=transfer_ms / 1000,
        ffn_io=transfer_ms / 1000,
        attn_disk=disk_ms / 1000,
        ffn_disk=disk_ms / 1000,
        check_seconds=check_ms / 1000,
        kv_seconds=kv_ms / 1000,
    )


def small_line(
    timings: LayerTimings | None = None, *, passes: int | None = 2, gpu_groups: int = 4, queue: int = 1, **options: Any
) -> SimLine:
    """A line over `timings`, or over those that are given in milliseconds as to `layer_timings`."""
    if timings is None:
        names = options.keys() & layer_timings.__annotations__.keys()
        timings = layer_timings(**{name: options.pop(name) for name in names})
    return sim_line(timings, passes=passes, gpu_groups=gpu_groups, queue=queue, **options)
