"""Parity with transformers: the same weights, the same tokens, the same numbers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.cases import EVERYTHING
from support.kv_blocks import empty_blocks, rows_of
from support.tiny_models import PROMPT, VARIANTS, VOCABULARY_SIZE, greedy, logits, save, save_and_read, with_attention

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.models import decoder
from pipeline.models.model_config import ModelConfig, read_config
from pipeline.models.rotary import rotary
from pipeline.models.specs import group_specs

STEPS = 32 if EVERYTHING else 16


class TinyRun:
    """One sequence over a checkpoint, group by group as the pipeline computes it, all weights in memory."""

    def __init__(self, folder: Path, dtype: torch.dtype, offset_bytes: int = 0) -> None:
        self.config = read_config(folder)
        self.dtype = dtype
        self.weights = read_weights(folder, self.config, offset_bytes)
        tokens, config = STEPS + len(PROMPT), self.config
        layers = [
            empty_blocks(tokens, layer.mixer.kv_heads, layer.mixer.head_dim, dtype) for layer in config.layer_kinds
        ]
        self.kv = [kv for kv, _ in layers]
        self.blocks_B = layers[0][1]
        self.start = 0

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The logits after each of the next tokens, fp32 [T, V]; the head is computed in two slices."""
        config = self.config
        hidden_TD = self.weights[-1, "embed"].tensors["embed"][list(token_ids)].to(self.dtype)
        positions = torch.arange(self.start, self.start + len(token_ids))
        turns = {rope: rotary(rope, positions) for rope in config.ropes}
        rows = rows_of(self.blocks_B, self.start, len(token_ids))
        for index, layer in enumerate(config.layer_kinds):
            weights = self.weights[index, "attn"]
            hidden_TD = decoder.attention_half(layer, weights, hidden_TD, self.kv[index], rows, turns)
            hidden_TD = decoder.ffn_half(layer, self.weights[index, "ffn"], hidden_TD)
        self.start += len(token_ids)
        head = self.weights[config.layers, "head"]
        normed_TD = decoder.final_norm(config, head, hidden_TD)
        slices = head.tensors["output"].split(VOCABULARY_SIZE // 2 + 1)
        return torch.cat(
            [decoder.output_slice(config.outside, weights_of({"output": rows}), normed_TD) for rows in slices], dim=-1
        )

    def chunked(self, token_ids: Sequence[int], chunk: int) -> torch.Tensor:
        """The logits after each token, `chunk` tokens a pass, fp32 [T, V]."""
        parts = [token_ids[first : first + chunk] for first in range(0, len(token_ids), chunk)]
        return torch.cat([self.logits(part) for part in parts])

    def greedy(self, prompt_ids: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        """Token ids and log-probabilities [steps, V] of the most likely continuation."""
        token_ids: list[int] = []
        logprobs = []
        waiting = list(prompt_ids)
        for _ in range(STEPS):
            logprobs.append(self.logits(waiting)[-1].log_softmax(-1))
            token_ids.append(int(logprobs[-1].argmax()))
            waiting = token_ids[-1:]
        return token_ids, torch.stack(logprobs)


def read_weights(folder: Path, config: ModelConfig, offset_bytes: int) -> dict[tuple[int, str], Weights]:
    """The weights of every group by short name, each at an address `offset_bytes` past a multiple of 64."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    groups = {}
    for group, specs in group_specs(config).items():
        for spec in specs:
            assert tensors[spec.name].shape == spec.shape
        groups[group] = weights_of({spec.short: moved(tensors[spec.name], offset_bytes) for spec in specs})
    return groups


def weights_of(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Tensors of one group, and what multiplies by those of two axes."""
    return Weights(tensors, {short: DenseMatrix(tensor) for short, tensor in tensors.items() if tensor.ndim == 2})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """A checkpoint of a variant in one shard, and what transformers reads from it; made once for all tests."""

    @functools.cache
    def make(variant: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(variant)
        return save_and_read(variant, folder, dtype=dtype), folder

    return make


def moved(tensor: torch.Tensor, offset_bytes: int) -> torch.Tensor:
    buffer = torch.empty(tensor.nbytes + 64 + offset_bytes, dtype=torch.uint8)
    start = -buffer.data_ptr() % 64 + offset_bytes
    copy = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_says_the_same_tokens_with_the_same_probabilities(variant: str, tmp_path: Path) -> None:
    expected = greedy(save_and_read(variant, tmp_path, shards=3), PROMPT, STEPS)
    token_ids, logprobs = TinyRun(tmp_path, torch.float32).greedy(PROMPT)
    assert token_ids == expected.token_ids
    torch.testing.assert_close(logprobs, expected.logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [1, 2, 5, 12])
def test_a_prompt_in_chunks_gives_the_same_numbers(
    variant: str, chunk: int, saved: Callable[..., tuple[Any, Path]]
) -> None:
    model, folder = saved(variant)
    expected = logits(model, PROMPT)
    ours = TinyRun(folder, torch.float32).chunked(PROMPT, chunk)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [1, 5, len(PROMPT)])
def test_bf16_differs_no_more_than_transformers_from_itself(
    variant: str, chunk: int, saved: Callable[..., tuple[Any, Path]]
) -> None:
    model, folder = saved(variant, torch.bfloat16)
    eager = logits(with_attention(model, "eager"), PROMPT, chunk)
    sdpa = logits(with_attention(model, "sdpa"), PROMPT, chunk)
    ours = TinyRun(folder, torch.bfloat16).chunked(PROMPT, chunk)
    # The two implementations may agree by luck; one rounding of the largest logit is the least that can differ at all.
    floor = float(eager.abs().max()) * torch.finfo(torch.bfloat16).eps
    assert float((ours - eager).abs().max()) <= float((sdpa - eager).abs().max()) + floor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_of_another_dtype_are_cast_at_use(dtype: torch.dtype, tmp_path: Path) -> None:
    save("qwen2", tmp_path, dtype=dtype)
    narrow = TinyRun(tmp_path, torch.float32)
    wide = TinyRun(tmp_path, torch.float32)
    wide.weights = {
        group: weights_of({short: weight.float() for short, weight in weights.tensors.items()})
        for group, weights in wide.weights.items()
    }
    assert narrow.weights[0, "attn"].tensors["q_bias"].dtype == dtype
    assert torch.equal(narrow.logits(PROMPT), wide.logits(PROMPT))


@pytest.mark.parametrize("offset_bytes", [2, 8, 40])
def test_bf16_weights_at_any_address_give_the_same_bits(offset_bytes: int, tmp_path: Path) -> None:
    save("qwen3", tmp_path, dtype=torch.bfloat16)
    aligned = TinyRun(tmp_path, torch.bfloat16).chunked(PROMPT, 4)
    assert torch.equal(TinyRun(tmp_path, torch.bfloat16, offset_bytes).chunked(PROMPT, 4), aligned)


@pytest.mark.parametrize("offset_bytes", [4, 8, 40])
def test_fp32_weights_at_any_address_give_the_same_numbers(offset_bytes: int, tmp_path: Path) -> None:
    """Not the same bits: MKL's product of one token rounds by the address of the matrix modulo 16."""
    save("qwen3", tmp_path)
    aligned = TinyRun(tmp_path, torch.float32).chunked(PROMPT, 1)
    ours = TinyRun(tmp_path, torch.float32, offset_bytes).chunked(PROMPT, 1)
    torch.testing.assert_close(ours, aligned, rtol=0, atol=1e-5 * float(aligned.abs().max()))


def test_weights_are_not_modified_and_hidden_states_are_where_they_were(tmp_path: Path) -> None:
    save("qwen2", tmp_path)
    run = TinyRun(tmp_path, torch.float32)
    before = {
        group: {short: w.clone() for short, w in weights.tensors.items()} for group, weights in run.weights.items()
    }
    hidden_TD = torch.randn(4, run.config.hidden_size)
    turns = {rope: rotary(rope, torch.arange(4)) for rope in run.config.ropes}
    layer = run.config.layer_kinds[0]
    rows = rows_of(run.blocks_B, 0, 4)
    attended_TD = decoder.attention_half(layer, run.weights[0, "attn"], hidden_TD, run.kv[0], rows, turns)
    assert attended_TD is hidden_TD
    assert decoder.ffn_half(layer, run.weights[0, "ffn"], hidden_TD) is hidden_TD
    assert all(
        torch.equal(w, before[group][short]) for group, ws in run.weights.items() for short, w in ws.tensors.items()
    )
