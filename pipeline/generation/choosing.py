"""Which way tokens are chosen on a device."""

import functools
from types import ModuleType

import torch

from pipeline.models.triton_kernels import kernels_of


@functools.cache
def fused(device: torch.device, vocabulary_size: int) -> ModuleType | None:
    """What chooses as `drawing` does, where Triton compiles it for a GPU; for a GPU without it, a warning says why."""
    return kernels_of("pipeline.generation.fused_drawing", device, "tokens are chosen in many steps", vocabulary_size)
