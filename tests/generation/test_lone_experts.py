"""Experts that a GPU multiplies by one by one are told of, before any memory is taken."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support import quantised_models

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.blueprint import draw_up, say_remarks
from pipeline.models.model_config import read_config

GPU = cast("Any", SimpleNamespace(torch_device=torch.device("cuda")))


@pytest.mark.parametrize(
    ("name", "said"),
    [("fp8 blocks", ""), ("ct mxfp4", ""), ("awq", "AWQ int4"), ("ct nvfp4", "NVFP4")],
)
def test_formats_that_the_kernels_for_many_do_not_know_are_named(
    name: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantised_models.save(quantised_models.FORMATS[name], "qwen3_moe", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        drawn = draw_up(read_config(tmp_path), checkpoint, settings := Config(device="cpu"), CpuDevice())
        for device in (GPU, CpuDevice()):
            caplog.clear()
            with caplog.at_level(logging.WARNING, "penstock"):
                say_remarks(drawn, settings, device)
            told = [one for one in caplog.messages if "one by one" in one]
            assert bool(told) == bool(said and device is GPU)
            assert all(said in one and "10 experts of 2 layers" in one for one in told)
