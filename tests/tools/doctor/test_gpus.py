"""Checks of every GPU there is, on GPUs whose memory lies in host memory."""

import contextlib

import pytest
import torch

from pipeline.devices.memory import HostMemory
from pipeline.devices.port import TWO_PLACES, Place
from pipeline.errors import ConfigError
from pipeline.tools.doctor import gpus, machine
from pipeline.tools.doctor.check import guarded


class PinningDevice:
    """A GPU's memory that lies in host memory; `refuses` to pin."""

    refuses = False
    freed = 0
    places = TWO_PLACES

    def __init__(self, index: int) -> None:
        self.index = index

    def memory_bytes(self, place: Place) -> tuple[int, int]:
        return (1 + self.index) * 10**9, 4 * 10**9

    def device_memory(self, nbytes: int) -> HostMemory:
        return HostMemory(nbytes)

    def host_memory(self, nbytes: int) -> HostMemory:
        if self.refuses:
            raise ConfigError("the CUDA driver could not pin it")
        return HostMemory(nbytes)

    def free(self) -> None:
        type(self).freed += 1


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """So many GPUs, which only look like some."""
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda size, device: ones(size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr("pipeline.devices.cuda.CudaDevice", PinningDevice)
    monkeypatch.setattr(PinningDevice, "freed", 0)
    return int(request.param)


@pytest.mark.parametrize("count", [0, 1, 2], indirect=True)
def test_each_gpu_is_named_with_what_is_free(count: int) -> None:
    found = machine.check_torch().found
    said = {
        0: "no GPU",
        1: " · GPU 0, 1 GB of 4 GB free",
        2: " · 2 GPUs · cuda:0 GPU 0, 1 GB of 4 GB free · cuda:1 GPU 1, 2 GB of 4 GB free",
    }
    assert said[count] in found


@pytest.mark.parametrize("count", [2], indirect=True)
def test_one_for_which_torch_has_no_kernels_is_bad(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(size: int, device: str) -> torch.Tensor:
        if device == "cuda:1":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return torch.zeros(size)

    monkeypatch.setattr(torch, "ones", ones)
    check = guarded("torch", machine.check_torch)
    assert check.verdict == "bad"
    assert "no kernel image" in check.found


@pytest.mark.parametrize("count", [0, 1, 3], indirect=True)
def test_pinning_is_really_tried_for_each(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check = gpus.check_pinned_memory()
    assert PinningDevice.freed == count
    if not count:
        assert "nothing is pinned" in check.found
        return
    assert "67.1 MB pinned in " in check.found
    assert check.found.count("cuda:") == (0 if count == 1 else 3)
    monkeypatch.setattr(PinningDevice, "refuses", True)
    check = gpus.check_pinned_memory()
    assert (check.verdict, PinningDevice.freed) == ("bad", 2 * count)
    assert "could not pin it" in check.found


@pytest.mark.parametrize("count", [2], indirect=True)
@pytest.mark.parametrize(("at_once", "verdict"), [(0.0021, "good"), (0.004, "note")])
def test_links_that_are_shared_are_told(
    count: int, at_once: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_copy", lambda count: gpus.Copies((0.02,) * count, (0.002,) * count, at_once))
    check = gpus.check_pinned_memory()
    assert check.verdict == verdict
    assert f"to all at once at {count * 67.108864e6 / at_once / 1e9:.3g} GB/s" in check.found


@pytest.mark.parametrize("count", [0, 1, 3], indirect=True)
def test_gpus_that_cannot_read_each_other_are_told(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: True)
    assert gpus.check_peers().verdict == "good"
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: {one, other} != {0, 2})
    check = gpus.check_peers()
    assert check.verdict == ("note" if count == 3 else "good")
    if count == 3:
        assert check.found == "2 of 6 ways lead over host memory, as cuda:0 to cuda:2, cuda:2 to cuda:0"
