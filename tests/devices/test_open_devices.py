"""Which devices settings name, where they are there."""

import pytest
import torch

from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.open import open_device, open_devices
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("devices", "device", "several"),
    [
        (None, "auto", None),
        (["gpu:0"], "cuda", None),
        ("cuda:0, gpu:01", "auto", ("cuda", "cuda:1")),
        (("cpu", "cpu"), "auto", ("cpu", "cpu")),
        ("all", "auto", "all"),
        (["cpu-copy"], "cpu-copy", None),
    ],
)
def test_one_device_is_device_and_several_have_the_names_of_torch(
    devices: object, device: str, several: object
) -> None:
    settings = Config.from_arguments({"devices": devices})
    assert (settings.device, settings.devices) == (device, several)
    assert settings.of_device("cpu").devices is None


def test_each_of_several_is_opened_also_one_that_stands_twice() -> None:
    first, second = open_devices("auto", ("cpu", "cpu-copy"))
    assert isinstance(first, CpuDevice)
    assert isinstance(second, CpuDevice)
    assert (len(first.places), len(second.places)) == (1, 2)
    (alone,) = open_devices("cpu")
    assert isinstance(alone, CpuDevice)


def test_what_computes_on_one_refuses_several() -> None:
    with pytest.raises(
        ConfigError, match=r"devices: this computes on one device; name it as device, have \('cpu', 'cpu'\)"
    ):
        open_device("auto", ("cpu", "cpu"))


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="devices='all' needs an NVIDIA GPU"):
        open_devices("auto", "all")
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        open_devices("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="'cuda:2' is not among the GPUs that CUDA shows: have 2, cuda:0 to cuda:1"):
        open_devices("auto", ("cuda:2", "cuda:2"))
