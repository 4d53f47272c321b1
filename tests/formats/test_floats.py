"""Small floats against what their libraries decode (golden/write_floats.py), and what contradicts a format."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.float_formats import FLOATS, GOLDEN
from support.golden_cases import check, kept_cases, same_bits
from support.stored_parts import find, read

from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.decoding import block_rows
from pipeline.formats.fp4 import MXFP4, NVFP4
from pipeline.formats.fp8 import Float8
from pipeline.formats.nf4 import Nf4
from pipeline.formats.tensors import TensorSpec

KEPT = kept_cases(GOLDEN)


@pytest.mark.parametrize("index", range(len(KEPT)), ids=lambda index: f"{KEPT[index].format}-{KEPT[index].options}")
def test_floats_are_decoded_as_the_library_does_whole_and_in_slices(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.formats.decoding.BLOCK_BYTES", 0)  # so that small matrices are several blocks of rows
    monkeypatch.setattr("pipeline.formats.decoding.BLOCK_ROWS", 4)
    case = KEPT[index]
    check(case, FLOATS[case.format](**case.options), tmp_path)


def test_every_format_has_settings_that_a_library_decoded() -> None:
    assert {case.format for case in KEPT} == FLOATS.keys()


@pytest.mark.parametrize("scale", ["F32", "BF16", "E8M0", "U8"])
def test_blocks_of_fp8_are_what_the_config_says_and_the_last_are_partial(scale: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    shape, grid = (300, 260), (3, 3)
    values = torch.randn(shape).to(torch.float8_e4m3fn)
    powers = torch.randint(120, 135, grid, dtype=torch.uint8)
    scales = {
        "F32": torch.rand(grid),
        "BF16": torch.rand(grid).bfloat16(),
        "E8M0": powers.view(torch.float8_e8m0fnu),
        "U8": powers,
    }[scale]
    stored_in = Float8("transformers", ("weight_scale_inv", "scale"), 128, 128)
    stored = find(tmp_path / "file", stored_in, shape, {"weight": values, "scale": scales})
    numbers = 2.0 ** (powers - 127.0) if scale in ("E8M0", "U8") else scales.float()
    spread = numbers.repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :260]
    assert same_bits(read(stored).decoded(torch.float32), values.float() * spread)
    assert stored.row_step == 128
    assert stored.dtype == (torch.float32 if scale == "F32" else torch.bfloat16)
    tail = stored.slice(128, 300).slice(128, 172)
    assert same_bits(read(tail).decoded(torch.bfloat16), (values.float() * spread)[256:].bfloat16())
    assert [part.shape for part in tail.tensors] == [(44, 260), (1, 3)]


def state_of(**changes: Any) -> dict[str, Any]:
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [30, 50]}
    return said | {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5} | changes


def nf4_parts(state: Mapping[str, Any] | str, blocks: int = 24) -> dict[str, torch.Tensor]:
    content = state if isinstance(state, str) else json.dumps(state)
    return {
        "weight": torch.randint(0, 256, (750, 1), dtype=torch.uint8),
        "weight.absmax": torch.zeros(blocks, dtype=torch.uint8),
        "weight.nested_absmax": torch.ones(1),
        "weight.nested_quant_map": torch.ones(256),
        "weight.quant_map": torch.zeros(16),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor([*content.encode()], dtype=torch.uint8),
    }


def test_rows_of_nf4_are_cut_where_a_block_of_magnitudes_begins(tmp_path: Path) -> None:
    state = state_of(blocksize=64.0)  # which is a whole number, too
    stored = find(tmp_path / "file", Nf4(is_double=True), (30, 50), nf4_parts(state))
    assert stored.row_step == 64 * 256 // 2, "50 columns have a factor of 2 in common with 16384 numbers"
    assert (stored.rows, stored.dtype) == (30, torch.bfloat16)
    assert stored.scratch_bytes(torch.float32) == block_rows((30, 50)) * 50 * 16


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("no JSON", "the quant state: broken JSON"),
        ("[1]", "the quant state: the JSON is not an object but list"),
        ("[" * 9000, "the quant state: the JSON is nested too deeply"),
        (state_of(shape=[50, 30]), r"need shape \[30, 50\], have \[50, 30\]"),
        (state_of(quant_type="fp4"), "need quant_type nf4, have fp4"),
        (state_of(blocksize=48), "need blocksize 32 or 64 or .*, have 48"),
        (state_of(blocksize=128), r"absmax': need shape \[12\] for blocks of 128, .*, have \[24\]"),
        (state_of(dtype="float64"), "need dtype float32 or float16 or bfloat16, have float64"),
        (state_of(nested_blocksize=128), "need nested_blocksize 256, have 128"),
        (state_of(nested_offset=math.nan), "need nested_offset a number of float32, have nan"),
        (state_of(nested_offset=1e39), r"need nested_offset a number of float32, have 1e\+39"),
        (state_of(nested_offset=None), "need nested_offset a number of float32, have None"),
        ({"quant_type": "nf4"}, r"need shape \[30, 50\], have None"),
    ],
)
def test_a_quant_state_that_contradicts_its_matrix_is_refused_by_name(
    state: Mapping[str, Any] | str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said) as refused:
        find(tmp_path / "file", Nf4(is_double=True), (30, 50), nf4_parts(state))
    assert "model.q_proj.weight." in str(refused.value)


@pytest.mark.parametrize("stored_in", [MXFP4, NVFP4])
def test_columns_that_no_group_divides_are_refused(stored_in: Any) -> None:
    spec = TensorSpec("q", "model.q_proj.weight", (8, 40))
    with pytest.raises(ConfigError, match=f"model.q_proj.weight: {stored_in.name} needs a multiple .*, have 40"):
        stored_in.stored_as(spec)
