"""Where bytes live and what computes: same-surface siblings of the Device port."""

from typing import TypeAlias

from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice

AnyDevice: TypeAlias = CpuDevice | CudaDevice
