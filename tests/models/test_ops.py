"""The small operations against transformers, bit by bit."""

from pathlib import Path

import pytest
import torch
from support.tiny_models import VARIANTS, save
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from pipeline.models.config import read_config
from pipeline.models.ops import linear, rms_norm, rotary, rotate

CPU = torch.device("cpu")


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotary_has_the_bits_of_transformers(variant: str, tmp_path: Path) -> None:
    model = save(variant, tmp_path)
    positions = torch.arange(11, 200)
    cos, sin = model.model.rotary_emb(torch.zeros(1), positions.unsqueeze(0))
    turn = rotary(read_config(tmp_path), positions)
    assert turn.cos.dtype == torch.float32
    assert torch.equal(turn.cos.squeeze(1), cos[0])
    assert torch.equal(turn.sin.squeeze(1), sin[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotate_has_the_bits_of_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    save("llama_gqa_llama3", tmp_path)
    config = read_config(tmp_path)
    x_TNH = torch.randn(5, config.heads, config.head_dim).to(dtype)
    turn = rotary(config, torch.arange(3, 8))
    x_1NTH = x_TNH.transpose(0, 1).unsqueeze(0)
    expected, _ = apply_rotary_pos_emb(
        x_1NTH, x_1NTH, turn.cos.to(dtype).view(1, 5, -1), turn.sin.to(dtype).view(1, 5, -1)
    )
    assert torch.equal(rotate(x_TNH, turn), expected[0].transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_has_the_bits_of_transformers(dtype: torch.dtype) -> None:
    x = torch.randn(3, 40).to(dtype) * 50
    reference = LlamaRMSNorm(40, eps=1e-5).to(dtype)
    reference.weight.data.normal_()
    normed = rms_norm(x, reference.weight.data, 1e-5)
    assert normed.dtype == dtype
    assert torch.equal(normed, reference(x).detach())


def test_linear_casts_weights_to_the_hidden_dtype() -> None:
    x, weight, bias = torch.randn(2, 8), torch.randn(5, 8, dtype=torch.bfloat16), torch.randn(5, dtype=torch.float16)
    assert torch.equal(linear(x, weight, bias), torch.nn.functional.linear(x, weight.float(), bias.float()))
