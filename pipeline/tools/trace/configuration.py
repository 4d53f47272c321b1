"""What was run, as plain data: what a trace file and a report say about a model's settings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.generation.build import Runtime


def describe(runtime: "Runtime", command: str) -> dict[str, Any]:
    """The settings of an open model as they took effect."""
    settings, line = runtime.settings, runtime.line
    return {
        "command": command,
        "model": f"{runtime.folder.name} ({runtime.config.family}, {runtime.config.layers} layers)",
        "device": str(runtime.device.torch_device),
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "policy": runtime.policy.name,
        "micro_batches": runtime.policy.micro_batches,
        "gpu_groups": settings.gpu_groups,
        "host_groups": settings.host_groups,
        "queues": {name: channel.capacity for name, channel in line.statistics().channels.items()},
        "max_requests": settings.max_requests,
        "max_tokens_per_pass": settings.max_tokens_per_pass,
        "kv_tokens": runtime.kv_room.tokens,
        "batch_invariant": settings.batch_invariant,
        "checksums": str(runtime.checking),
        "reading": str(runtime.reading.reading),
        "groups_per_pass": len(runtime.catalog.order),
        "moving_groups": runtime.moving_groups,
        "actors": [actor.name for line in runtime.wired.lines for actor in line.actors],
    }
