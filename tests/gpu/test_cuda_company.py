"""What a request says on a GPU, opened with `batch_invariant=True`, to the last bit, whoever else is there."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from support.attention_kinds import attention
from support.company import DTYPES, PROMPTS, ROOM, alone, ask, save

from pipeline import Model
from pipeline.devices.cuda import CudaDevice
from pipeline.formats.dense import linear
from pipeline.models.attention import LayerKV, attend
from pipeline.models.ops import rms_norm
from pipeline.models.row_blocks import RowBlocks

pytestmark = pytest.mark.cuda
COUNTS = [*range(1, 257), 257, 300, 511, 512]


def in_blocks(operation: Any, x_TD: torch.Tensor) -> torch.Tensor:
    blocks = RowBlocks.of(CudaDevice.block_rows, 1, batch_invariant=True)
    filled_TD = blocks.fill(x_TD)
    return torch.cat([operation(filled_TD[begin:end]) for begin, end in blocks.cuts(0, len(filled_TD))])[: len(x_TD)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(14336, 4096), (4096, 4096), (4096, 14336)], ids=str)
@torch.inference_mode()
def test_a_row_of_a_product_or_norm_has_the_same_bits_among_any_number(shape: tuple[int, int], dtype: str) -> None:
    """Without blocks row 0 takes two bit patterns in bf16 at [4096, 4096], three at [4096, 14336] (H100)."""
    torch.manual_seed(1)
    weight = (torch.randn(shape) / shape[1] ** 0.5).to("cuda", getattr(torch, dtype))
    x = torch.randn(512, shape[1]).to("cuda", getattr(torch, dtype))
    for operation in (lambda rows: linear(rows, weight), lambda rows: rms_norm(rows, weight[0], 1e-5)):
        expected = in_blocks(operation, x)
        for count in COUNTS:
            assert torch.equal(in_blocks(operation, x[:count]), expected[:count]), count


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_the_last_query_of_a_prompt_has_the_same_bits_alone_and_behind_any_number(
    dtype: str, window: int | None
) -> None:
    blocks, tokens = 313, 5000
    torch.manual_seed(1)
    kv = LayerKV(torch.randn(blocks, 2, 16, 8, 128).to("cuda", getattr(torch, dtype)))
    q_TNH = torch.randn(tokens, 32, 128).to("cuda", getattr(torch, dtype))
    table, kind = torch.randperm(blocks).cuda(), attention(32, 8, 128, window=window)
    alone_1A = attend(q_TNH[-1:], kv, table, tokens - 1, tokens, kind)
    for count in (2, 9, 64, 129, 1000, tokens):
        mixed_TA = attend(q_TNH[-count:], kv, table, tokens - count, tokens, kind)
        assert torch.equal(mixed_TA[-1:], alone_1A), count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_pass": 7}, {"policy": "stage3"}], ids=str)
async def test_company_changes_no_bit(settings: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    await asyncio.to_thread(save, tmp_path)
    mode: dict[str, Any] = {"device": "cuda", "dtype": dtype, "batch_invariant": True}
    expected = await alone(tmp_path, **mode)
    async with Model.open(tmp_path, **{**ROOM, **mode, **settings}) as model:
        assert await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS)))) == expected
