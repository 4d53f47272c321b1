"""Timings from a shape: the bytes are those that the runtime would move."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.checkpoints.presets import PRESETS
from pipeline.checkpoints.written_formats import written_format
from pipeline.errors import ConfigError
from pipeline.models.layers import Attention, DeltaNet
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs
from pipeline.tools.simulation.derive import derive_timings, find_shapes
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK


def folder_of(preset: str, path: Path, **more: object) -> Path:
    (path / "config.json").write_text(json.dumps({**PRESETS[preset], **more}))
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_parameters_of_its_tensors(preset: str, tmp_path: Path) -> None:
    shapes = find_shapes(preset)
    specs = group_specs(read_config(folder_of(preset, tmp_path)))
    for layer, shape in enumerate(shapes):
        for part in ("attn", "ffn"):
            assert shape.parameters(part) == sum(math.prod(spec.shape) for spec in specs[layer, part])
    assert len(shapes) == max(layer for layer, _ in specs)
    assert find_shapes(str(tmp_path)) == shapes


def test_a_folder_says_which_matrices_have_biases(tmp_path: Path) -> None:
    folder = folder_of("llama-3.2-3b", tmp_path, attention_bias=True, mlp_bias=True)
    shape, specs = find_shapes(str(folder))[0], group_specs(read_config(folder))
    assert shape.parameters("attn") == sum(math.prod(spec.shape) for spec in specs[0, "attn"])
    assert shape.parameters("ffn") == sum(math.prod(spec.shape) for spec in specs[0, "ffn"])


def test_a_folder_says_how_wide_its_weights_are(tmp_path: Path) -> None:
    assert find_shapes(str(folder_of("qwen3-0.6b", tmp_path, torch_dtype="float32")))[0].item_bytes == 4
    assert find_shapes(str(folder_of("qwen3-0.6b", tmp_path, torch_dtype="float16")))[0].item_bytes == 2
    int4 = written_format("int4").quantization_config(["lm_head"])
    quantised = find_shapes(str(folder_of("qwen3-0.6b", tmp_path, torch_dtype="float16", quantization_config=int4)))
    assert quantised[0].item_bytes == pytest.approx(0.5 + 2 / 128, rel=1e-3)


def test_the_70b_of_the_analysis() -> None:
    timings = derive_timings(find_shapes("llama-3-70b"), disk_gbps=5, h2d_gbps=20, tflops=300, batch_tokens=1024)
    assert (timings.layers, timings.one_link) == (80, False)
    assert timings.attn_disk == pytest.approx(2 * 151.0e6 / 5e9, rel=1e-3)
    assert timings.ffn_disk == pytest.approx(2 * 704.65e6 / 5e9, rel=1e-3)
    assert timings.attn_io == pytest.approx(timings.attn_disk / 4)
    assert timings.ffn_io == pytest.approx(timings.ffn_disk / 4)
    assert timings.ffn == pytest.approx(2 * 704.65e6 * 1024 / 300e12, rel=1e-3)


def test_a_token_attends_to_itself_and_to_those_before_it() -> None:
    """Two products, scores and their sum over the values, of 2 x heads x head_dim operations for each pair."""
    shape = find_shapes("llama-3.2-1b")[0]
    attending = shape.operations("attn", 512) - 2 * shape.parameters("attn") * 512
    assert attending == sum(2 * 2 * 32 * 64 * (before + 1) for before in range(512))


def test_layers_that_differ_have_times_of_their_own_and_their_means(tmp_path: Path) -> None:
    shape = find_shapes("llama-3.2-1b")[0]
    attention = shape.layer.mixer
    assert isinstance(attention, Attention)
    sees_few = replace(shape, layer=replace(shape.layer, mixer=replace(attention, window=4)))
    net = DeltaNet(key_heads=2, value_heads=4, key_dim=8, value_dim=16, kernel=4, grouped=False)
    recurrent = replace(shape, layer=replace(shape.layer, mixer=net), item_bytes=1)
    operations = [one.operations("attn", 10) - 20 * one.parameters("attn") for one in (shape, sees_few, recurrent)]
    assert operations == [4 * 32 * 64 * 55, 4 * 32 * 64 * 34, 10 * 6 * 4 * 8 * 16]
    rates = {"disk_gbps": 5, "h2d_gbps": 20, "tflops": 300, "batch_tokens": 10}
    timings = derive_timings([shape, sees_few, recurrent, recurrent], **rates)
    alone = [derive_timings([one], **rates) for one in (shape, sees_few, recurrent, recurrent)]
    assert list(timings.unlike) == alone
    for layer, one in [(0, alone[0]), (1, alone[1]), (3, alone[3]), (4, alone[0])]:
        for actor in (DISK, LINK, COMPUTE):
            for part in ("attn", "ffn"):
                assert timings.seconds(actor, 0, (layer, part)) == one.seconds(actor, 0, (0, part))
    assert timings.attn == pytest.approx(sum(one.attn for one in alone) / 4)
    assert derive_timings([shape, shape], **rates) == replace(alone[0], layers=2)


def test_what_is_neither_preset_nor_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--model.*did you mean 'llama-3-70b'"):
        find_shapes("lama-3-70b")


def test_a_preset_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from pipeline.tools.simulation.derive import find_shapes\n"
        "find_shapes('qwen2.5-7b')\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
