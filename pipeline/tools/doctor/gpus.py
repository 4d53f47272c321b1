"""Checks of every GPU: whether kernels run, what memory is free, how fast copies are, alone and all at once."""

import itertools
import time
from dataclasses import dataclass

from pipeline.tools.doctor.check import Check

PINNED_BYTES = 64 << 20
SHARED = 0.8
"""Links that reach less than this share of their rates when all copy at once are not links of their own."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Seconds to pin memory for each GPU, to copy it there alone, and until all have it that copy at once."""

    pin: tuple[float, ...]
    alone: tuple[float, ...]
    at_once: float


def describe_gpus() -> str:
    """The GPUs, and what is free on each; raises what torch raises where no kernel runs on one."""
    import torch

    from pipeline.devices.cuda import CudaDevice
    from pipeline.system.sizes import human_bytes

    said = []
    for index in range(torch.cuda.device_count()):
        torch.ones(2, device=f"cuda:{index}").sum().item()  # fails when torch was built without kernels for this GPU
        device = CudaDevice(index)
        free, whole = device.memory_bytes(device.places[-1])
        said.append(f"{torch.cuda.get_device_name(index)}, {human_bytes(free)} of {human_bytes(whole)} free")
    if len(said) == 1:
        return said[0]
    return " · ".join([f"{len(said)} GPUs", *(f"cuda:{index} {one}" for index, one in enumerate(said))])


def check_pinned_memory() -> Check:
    """Check how much memory may be locked; with GPUs, whether memory can really be pinned for them, and how fast."""
    import resource

    import torch

    from pipeline.errors import ConfigError
    from pipeline.system.sizes import human_bytes

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    allowed = f"locked memory {'is not limited' if limit == resource.RLIM_INFINITY else f'<= {human_bytes(limit)}'}"
    if not torch.cuda.is_available():
        return Check("pinned memory", "good", f"no GPU, so nothing is pinned · {allowed}")
    try:
        copies = _copy(torch.cuda.device_count())
    except ConfigError as error:
        what = "raise `ulimit -l`; in a container --ulimit memlock=-1"
        return Check("pinned memory", "bad", f"{error} · {allowed}", what)
    rates = [PINNED_BYTES / seconds for seconds in copies.alone]
    pinned = f"{human_bytes(PINNED_BYTES)} pinned in {1000 * max(copies.pin):.1f} ms"
    if len(rates) == 1:
        return Check("pinned memory", "good", f"{pinned}, copied to the GPU at {human_bytes(rates[0])}/s · {allowed}")
    each = ", ".join(f"cuda:{index} at {human_bytes(rate)}/s" for index, rate in enumerate(rates))
    together = len(rates) * PINNED_BYTES / copies.at_once
    found = f"{pinned}, copied to {each}, to all at once at {human_bytes(together)}/s · {allowed}"
    if together < SHARED * sum(rates):
        what = "GPUs share a link, or host memory is too slow for all: weights that move come at the lower rate"
        return Check("pinned memory", "note", found, what)
    return Check("pinned memory", "good", found)


def check_peers() -> Check:
    """Check whether GPUs read each other's memory, over which sections hand on hidden states."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return Check("gpu peers", "good", f"{['no GPU', 'one GPU'][count]}, so none hands anything on")
    pairs = [*itertools.permutations(range(count), 2)]
    apart = [(one, other) for one, other in pairs if not torch.cuda.can_device_access_peer(one, other)]
    if not apart:
        return Check("gpu peers", "good", f"each of {count} reads the memory of the others")
    said = ", ".join(f"cuda:{one} to cuda:{other}" for one, other in apart[:3])
    found = f"{len(apart)} of {len(pairs)} ways lead over host memory, as {said}"
    return Check("gpu peers", "note", found, "several devices work, with hops that take a little longer")


def _copy(count: int) -> Copies:
    """Raises ConfigError where the driver refuses to pin."""
    import torch

    from pipeline.devices.cuda import CudaDevice

    devices = [CudaDevice(index) for index in range(count)]
    try:
        targets = [device.device_memory(PINNED_BYTES) for device in devices]
        _synchronize(count)
        pin, alone, sources = [], [], []
        for device in devices:
            started = time.perf_counter()
            sources.append(device.host_memory(PINNED_BYTES))
            pin.append(time.perf_counter() - started)

        def seconds(some: range) -> float:
            started = time.perf_counter()
            for index in some:
                with torch.cuda.device(index):
                    targets[index].tensor.copy_(sources[index].tensor, non_blocking=True)
            _synchronize(count)
            return time.perf_counter() - started

        for index in range(count):
            seconds(range(index, index + 1))  # wakes the link
            alone.append(seconds(range(index, index + 1)))
        return Copies(tuple(pin), tuple(alone), seconds(range(count)))
    finally:
        for device in devices:
            device.free()


def _synchronize(count: int) -> None:
    import torch

    for index in range(count):
        torch.cuda.synchronize(index)
