"""What devices are called in settings: those of one kind, each as torch calls it."""

from collections.abc import Sequence
from typing import Literal, get_args

from pipeline.errors import ConfigError, shown, unknown_name

DeviceName = Literal["auto", "cpu", "cpu-copy", "cuda"]
DEVICES: tuple[str, ...] = get_args(DeviceName)
ALL = "all"
"""All GPUs that CUDA shows."""
GPU = "cuda"
ALSO_CALLED = {"gpu": GPU}
"""Other names that people know devices by."""
MOST_DEVICES = 64


def device_name(setting: str, name: object) -> str:
    """The name by which the device is known everywhere: a GPU behind the first as cuda:1. Raises ConfigError."""
    if not isinstance(name, str):
        raise ConfigError(f"{setting}: need one of {', '.join(DEVICES)} as text, have {shown(name)}")
    kind, _, index = name.partition(":")
    kind = ALSO_CALLED.get(kind, kind)
    if kind == GPU and index.isdecimal():
        return f"{GPU}:{int(index)}" if int(index) else GPU
    if name in ALSO_CALLED or name in DEVICES:
        return kind
    raise ConfigError(f"{setting}: {unknown_name('value', name, [*DEVICES, f'{GPU}:1'])}")


def device_names(devices: object) -> tuple[str, ...] | str:
    """Those of several devices, of which one may stand twice; or `ALL`. Raises ConfigError."""
    if isinstance(devices, str):
        devices = [name for one in devices.split(",") if (name := one.strip())]
        if devices == [ALL]:
            return ALL
    if not isinstance(devices, Sequence) or not 0 < len(devices) <= MOST_DEVICES:
        need = f'need 1 to {MOST_DEVICES} names, as in ["cuda:0", "cuda:1"], or "{ALL}"'
        raise ConfigError(f"devices: {need}, have {shown(devices)}")
    names = tuple(device_name("devices", name) for name in devices)
    kinds = {name.partition(":")[0]: name for name in names}
    if len(names) > 1 and "auto" in kinds:
        raise ConfigError(f"devices: name each, as in cuda:0,cuda:1, have auto; or say {ALL}")
    if len(kinds) > 1:
        raise ConfigError(f"devices: need devices of one kind, have {' and '.join(kinds.values())}")
    return names
