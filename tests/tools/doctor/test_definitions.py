"""The check of formats: good where nothing is wrong, and a matrix named where something is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import quantised_models, tiny_models

from pipeline.formats import fp8, integers
from pipeline.formats.decoding import decoded_matrix, decoded_product
from pipeline.tools.doctor.check import Check
from pipeline.tools.doctor.definitions import check_decoding


async def checked(name: str, folder: Path, dtype: str = "float32") -> list[Check]:
    quantised_models.save(quantised_models.FORMATS[name], "llama", folder)
    return await check_decoding(folder, {"device": "cpu", "dtype": dtype}, lambda text: None)


@pytest.mark.parametrize(
    ("name", "dtype", "named"),
    [
        ("gptq, head", "float16", "GPTQ int4, groups of 32"),
        ("fp8 blocks, head", "bfloat16", "transformers FP8, a scale for each block of 128 x 128"),
        ("nf4 nested", "float32", "bitsandbytes nf4, double quantisation"),
    ],
)
async def test_what_is_decoded_as_defined_is_good(name: str, dtype: str, named: str, tmp_path: Path) -> None:
    (check,) = await checked(name, tmp_path, dtype)
    assert check.verdict == "good"
    shapes = 5 if "head" in name else 4
    assert check.found.startswith(
        f"{named}: as defined, bit for bit, in {shapes} shapes, and in products with 1, 16, 64 "
    )


async def test_there_is_nothing_to_check_where_nothing_is_quantised(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    dense = tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=1)
    assert await check_decoding(dense, {"device": "cpu"}, lambda text: None) == []


def off_for_many(x_TD: torch.Tensor, product_TF: torch.Tensor) -> torch.Tensor:
    return product_TF * 1.001 if len(x_TD) > 16 and x_TD.min() < 0 else product_TF


def off_by_one_number(x_TD: torch.Tensor, product_TF: torch.Tensor) -> torch.Tensor:
    return torch.where(x_TD[:, 3:4] == 1, product_TF.nextafter(product_TF + 1), product_TF)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (off_for_many, "a product with 64 rows is off by up to "),
        (off_by_one_number, "columns come otherwise out of a product with "),
    ],
)
async def test_products_that_differ_are_told(
    spoil: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def product(matrix: integers.IntegerMatrix, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        return spoil(x_TD, decoded_product(matrix, x_TD, bias_F))

    monkeypatch.setattr(integers, "decoded_product", product)
    (check,) = await checked("ct int4", tmp_path)
    assert check.verdict == "bad"
    assert check.found.startswith("compressed-tensors int4, groups of 32: 'model.layers.0.")
    assert said in check.found


async def test_a_device_that_decodes_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "decoded_matrix", lambda matrix, dtype: decoded_matrix(matrix, dtype) + 1)
    (check,) = await checked("ct fp8 rows", tmp_path)
    assert check.verdict == "bad"
    assert "is not decoded on cpu as plain torch decodes it" in check.found
