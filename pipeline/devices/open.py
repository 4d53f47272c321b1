"""Which device a model runs on."""

import torch

from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.port import Device


def open_device(name: str) -> Device:
    """The device of that name; "auto" is a GPU where there is one. Raises ConfigError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return CudaDevice() if name == "cuda" else CpuDevice(copy=name == "cpu-copy")
