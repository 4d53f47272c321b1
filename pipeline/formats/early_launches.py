"""Kernels that begin while the one before them on their stream still ends, where a GPU can: 9.0 and later.

Such a kernel says first that the next may begin, and waits before it touches what others compute or read; weights it
may load before. Every program of it waits: so the end of a kernel means that those before it have ended.
"""

import functools

import torch


@functools.cache
def early(device: torch.device) -> dict[str, bool]:
    """Return what a kernel with a constant EARLY is launched with."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}
