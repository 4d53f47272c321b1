"""Which devices a model runs on."""

from collections.abc import Sequence

import torch

from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.port import Device
from pipeline.errors import ConfigError, shown


def open_device(name: str, several: Sequence[str] | str | None = None) -> Device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises ConfigError when it is not there, and where `several` are said, as what asks for one computes on one.
    """
    if several is not None:
        raise ConfigError(f"devices: this computes on one device; name it as device, have {shown(several)}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    return CudaDevice(int(index or 0)) if kind == "cuda" else CpuDevice(copy=name == "cpu-copy")


def open_devices(name: str, several: Sequence[str] | str | None = None) -> tuple[Device, ...]:
    """That of `name`, or `several` where they are said, of which "all" are all GPUs. Raises ConfigError as above."""
    if several is None:
        return (open_device(name),)
    if isinstance(several, str):
        several = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if not several:
            raise ConfigError("devices='all' needs an NVIDIA GPU and a CUDA build of torch; use device='cpu'")
    return tuple(open_device(one) for one in several)
