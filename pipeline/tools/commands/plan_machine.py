"""A machine that is not here, as the options of `penstock plan` tell of it."""

import argparse

from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.port import ONE_PLACE
from pipeline.devices.sim import SimDevice
from pipeline.errors import ConfigError
from pipeline.formats.parts import EXPERT, KINDS
from pipeline.tools.bench.forecast import Rates, ToldCompute
from pipeline.tools.commands.values import option_of

NUMBERS = ("disk_gbps", "h2d_gbps", "tflops", "memory_gbps")
GIGA, TERA = 1e9, 1e12


def told_machine(options: argparse.Namespace, settings: Config) -> tuple[SimDevice, Rates] | None:
    """Device and rates from numbers alone, if any is given; the sizes of a memory that is not here must be told too."""
    if all(getattr(options, name) is None for name in NUMBERS):
        return None
    for name in NUMBERS:
        if (value := getattr(options, name)) is not None and not value > 0:
            raise ConfigError(f"{option_of(name)}: need a number above 0, have {value}")
    needed = {"disk_gbps": options.disk_gbps, "tflops": options.tflops, "host_memory": settings.host_memory}
    if options.h2d_gbps is not None:
        needed["gpu_memory"] = settings.gpu_memory
    if missing := [option_of(name) for name, value in needed.items() if value is None]:
        raise ConfigError(f"{', '.join(missing)}: a machine that is not here needs it too; have no such option")
    for name, value in needed.items():
        if isinstance(value, str) and value.strip().endswith("%"):
            raise ConfigError(f"{option_of(name)}: need a size as 64GB, have {value} of a machine that is not here")
    kind: type[CpuDevice | CudaDevice] = CpuDevice if options.h2d_gbps is None else CudaDevice
    places = ONE_PLACE if options.h2d_gbps is None else CudaDevice.places
    alignment, rows, libraries = kind.alignment_bytes, kind.block_rows, kind.libraries.whole
    device = SimDevice(places, alignment_bytes=alignment, block_rows=rows, loads_later=libraries)
    return device, _told_rates(options)


def _told_rates(options: argparse.Namespace) -> Rates:
    compute = ToldCompute(options.tflops * TERA, options.memory_gbps and options.memory_gbps * GIGA)
    h2d = None if options.h2d_gbps is None else options.h2d_gbps * GIGA
    return Rates(options.disk_gbps * GIGA, h2d, dict.fromkeys((*KINDS, EXPERT), compute), how="as told")
