"""Which device a model runs on."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import torch

from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice

AnyDevice: TypeAlias = CpuDevice | CudaDevice


class PlannedDevice(Protocol):
    """What a memory plan asks of a device, which need not be here."""

    @property
    def unified(self) -> bool:
        """Whether host and device memory are the same."""

    @property
    def packed(self) -> bool:
        """Whether tensors lie packed in device slots."""

    @property
    def pools(self) -> Mapping[str, str]:
        """Which memory each place takes from, as other models of this process see it."""

    @property
    def loads_later(self) -> Mapping[str, int]:
        """What its libraries add once they run, by place, in bytes."""

    def memory_bytes(self) -> tuple[int, int]:
        """What is free on it, and all there is."""


def open_device(name: str) -> AnyDevice:
    """The device of that name; "auto" is a GPU where there is one. Raises ConfigError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return CudaDevice() if name == "cuda" else CpuDevice(copy=name == "cpu-copy")
