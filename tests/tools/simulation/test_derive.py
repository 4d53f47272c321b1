"""Timings from a shape: the bytes are those that the runtime would move."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.checkpoints.presets import PRESETS
from pipeline.checkpoints.written_formats import written_format
from pipeline.errors import ConfigError
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs
from pipeline.tools.simulation.derive import derive_timings, find_shape


def folder_of(preset: str, path: Path, **more: object) -> Path:
    (path / "config.json").write_text(json.dumps({**PRESETS[preset], **more}))
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_parameters_of_its_tensors(preset: str, tmp_path: Path) -> None:
    shape = find_shape(preset)
    specs = group_specs(read_config(folder_of(preset, tmp_path)))
    assert shape.parameters("attn") == sum(math.prod(spec.shape) for spec in specs[0, "attn"])
    assert shape.parameters("ffn") == sum(math.prod(spec.shape) for spec in specs[0, "ffn"])
    assert shape.layers == max(layer for layer, _ in specs)
    assert find_shape(str(tmp_path)) == shape


def test_a_folder_says_which_matrices_have_biases(tmp_path: Path) -> None:
    folder = folder_of("llama-3.2-3b", tmp_path, attention_bias=True, mlp_bias=True)
    shape, specs = find_shape(str(folder)), group_specs(read_config(folder))
    assert shape.parameters("attn") == sum(math.prod(spec.shape) for spec in specs[0, "attn"])
    assert shape.parameters("ffn") == sum(math.prod(spec.shape) for spec in specs[0, "ffn"])


def test_a_folder_says_how_wide_its_weights_are(tmp_path: Path) -> None:
    assert find_shape(str(folder_of("qwen3-0.6b", tmp_path, torch_dtype="float32"))).item_bytes == 4
    assert find_shape(str(folder_of("qwen3-0.6b", tmp_path, torch_dtype="float16"))).item_bytes == 2
    int4 = written_format("int4").quantization_config(["lm_head"])
    quantised = find_shape(str(folder_of("qwen3-0.6b", tmp_path, torch_dtype="float16", quantization_config=int4)))
    assert quantised.item_bytes == pytest.approx(0.5 + 2 / 128, rel=1e-3)


def test_the_70b_of_the_analysis() -> None:
    shape = find_shape("llama-3-70b")
    timings = derive_timings(shape, disk_gbps=5, h2d_gbps=20, tflops=300, batch_tokens=1024)
    assert (timings.layers, timings.one_link) == (80, False)
    assert timings.attn_disk == pytest.approx(2 * 151.0e6 / 5e9, rel=1e-3)
    assert timings.ffn_disk == pytest.approx(2 * 704.65e6 / 5e9, rel=1e-3)
    assert timings.attn_io == pytest.approx(timings.attn_disk / 4)
    assert timings.ffn_io == pytest.approx(timings.ffn_disk / 4)
    assert timings.ffn == pytest.approx(2 * 704.65e6 * 1024 / 300e12, rel=1e-3)


def test_a_token_attends_to_itself_and_to_those_before_it() -> None:
    """Two products, scores and their sum over the values, of 2 x heads x head_dim operations for each pair."""
    shape = find_shape("llama-3.2-1b")
    attending = shape.operations("attn", 512) - 2 * shape.parameters("attn") * 512
    assert attending == sum(2 * 2 * 32 * 64 * (before + 1) for before in range(512))


def test_what_is_neither_preset_nor_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--model.*did you mean 'llama-3-70b'"):
        find_shape("lama-3-70b")


def test_a_preset_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from pipeline.tools.simulation.derive import find_shape\n"
        "find_shape('qwen2.5-7b')\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
