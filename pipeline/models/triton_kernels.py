"""Kernels that Triton compiles, where it can."""

import importlib
import logging
from types import ModuleType

import torch

logger = logging.getLogger("penstock")


def kernels_of(module: str, device: torch.device, otherwise: str, *kind: object) -> ModuleType | None:
    """The module that launches them, once it has tried them out with what is of this `kind`; None on a CPU.

    None, too, on a GPU on which that fails: a warning says why, and what is the case `otherwise`.
    """
    if device.type != "cuda":
        return None
    try:
        found = importlib.import_module(module)
        with torch.cuda.device(device):  # Triton compiles for the current one
            found.try_out(device, *kind)
    except Exception as error:
        logger.warning(
            "%s on %s, which is slower: Triton, which needs a C compiler, could not make its kernels: %s: %s",
            otherwise,
            device,
            type(error).__name__,
            error,
        )
        return None
    return found
