"""Which way tokens are chosen on a device."""

import functools
import logging
from types import ModuleType

import torch

logger = logging.getLogger("penstock")


@functools.cache
def fused(device: torch.device, vocabulary_size: int) -> ModuleType | None:
    """What chooses as `drawing` does, where Triton compiles it for a GPU; for a GPU without it, a warning says why."""
    if device.type != "cuda":
        return None
    try:
        from pipeline.generation import fused_drawing

        fused_drawing.try_out(device, vocabulary_size)
    except Exception as error:
        logger.warning(
            "tokens are chosen in many steps on %s: Triton, which needs a C compiler, made no kernels: %s: %s",
            device,
            type(error).__name__,
            error,
        )
        return None
    return fused_drawing
