"""Tiny random models of every family, built by transformers, saved as checkpoints, and asked for reference answers."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import EVERYTHING

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # transformers and what it imports warn about themselves
    import transformers
    from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from pipeline.tools.bench.hugging_face_arm import name_of_cache

transformers.logging.disable_progress_bar()

VOCABULARY_SIZE = 259
MAX_POSITIONS = 256

_SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 48,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}

VARIANTS: dict[str, Callable[[], Any]] = {
    "llama_mha": lambda: LlamaConfig(**_SHAPE, num_key_value_heads=4),
    "llama_gqa_llama3": lambda: LlamaConfig(**_SHAPE, num_key_value_heads=2, rope_parameters=dict(_LLAMA3_ROPE)),
    "llama_linear": lambda: LlamaConfig(**_SHAPE, num_key_value_heads=1, rope_parameters=dict(_LINEAR_ROPE)),
    "llama_tied": lambda: LlamaConfig(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "llama_head_dim": lambda: LlamaConfig(**_SHAPE, num_key_value_heads=2, head_dim=22),
    "llama_biases": lambda: LlamaConfig(
        **{**_SHAPE, "num_attention_heads": 3}, num_key_value_heads=1, head_dim=22, attention_bias=True, mlp_bias=True
    ),
    "mistral_window": lambda: MistralConfig(**_SHAPE, num_key_value_heads=2, sliding_window=7),
    "qwen2": lambda: Qwen2Config(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2_window": lambda: Qwen2Config(
        **_SHAPE, num_key_value_heads=2, use_sliding_window=True, sliding_window=9, max_window_layers=0
    ),
    "qwen3": lambda: Qwen3Config(**_SHAPE, num_key_value_heads=2, head_dim=16),
    "qwen3_biases": lambda: Qwen3Config(**_SHAPE, num_key_value_heads=4, head_dim=10, attention_bias=True),
}

UNLIKE = [*VARIANTS] if EVERYTHING else ["llama_mha", "llama_biases", "mistral_window", "qwen2", "qwen3"]
"""Few that together have what all have, but frequencies: keys that heads share, biases, windows, tied heads, norms."""
ORIGINAL_POSITIONS = 40
"""Of those whose rotary frequencies depend on the length: two blocks and a half."""
_LONG_SHAPE = {**_SHAPE, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 22}
OF_ANY_LENGTH: dict[str, Callable[[], Any]] = {
    "dynamic": lambda: LlamaConfig(
        **{**_LONG_SHAPE, "max_position_embeddings": ORIGINAL_POSITIONS},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "longrope": lambda: LlamaConfig(
        **_LONG_SHAPE,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 6.4,
            "short_factor": [1 + index / 10 for index in range(11)],
            "long_factor": [1 + index * 1.5 for index in range(11)],
            "original_max_position_embeddings": ORIGINAL_POSITIONS,
        },
    ),
}

PROMPT = (5, 9, 1, 77, 34, 201, 8, 8, 90, 14, 3, 3, 64)
"""Longer than every sliding window above."""


@dataclass(frozen=True)
class Greedy:
    """What transformers answers: the new tokens, and the log-probabilities [steps, V] that each was chosen from."""

    token_ids: list[int]
    logprobs: torch.Tensor


def build(variant: str, layers: int = 3) -> PreTrainedModel:
    """A model whose every parameter is random, norms and biases too, so that none can be left out unnoticed."""
    config = {**VARIANTS, **OF_ANY_LENGTH}[variant]()
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:1] * layers
    return randomised(config, seed=sum(variant.encode()))


def auto_class(config: Any) -> Any:
    """By which transformers makes a model of this config."""
    has_towers = hasattr(config, "text_config")
    return transformers.AutoModelForImageTextToText if has_towers else transformers.AutoModelForCausalLM


def randomised(config: Any, seed: int, deviation: float = 0.25) -> PreTrainedModel:
    """A model of this config, whose every parameter is random."""
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1 if parameter.ndim == 1 else deviation)
            if "norm" in name or name.endswith("scale"):
                parameter.add_(1.0)
        for name, buffer in model.named_buffers():
            if name.endswith(("layer_scalar", "e_score_correction_bias")):
                buffer.normal_(mean=1.0, std=0.1)
            if name.endswith("tid2eid"):  # each token has some experts, each once
                buffer.copy_(torch.rand(len(buffer), config.n_routed_experts).argsort(1)[:, : buffer.shape[1]])
    return model.eval()


def save(variant: str, folder: Path, shards: int = 1, dtype: torch.dtype = torch.float32, layers: int = 3) -> None:
    """Write the checkpoint of a variant into `folder`, in at least `shards` files."""
    save_model(build(variant, layers).to(dtype), folder, shards)


def save_and_read(variant: str, folder: Path, shards: int = 1, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same, and return what transformers reads.

    That is not what was saved, as `Module.to` would also round the rotary frequencies, which `from_pretrained` keeps.
    """
    save(variant, folder, shards, dtype)
    config = transformers.AutoConfig.from_pretrained(folder)
    return auto_class(config).from_pretrained(folder, dtype=dtype).eval()


def save_model(model: PreTrainedModel, folder: Path, shards: int, stacked: bool = False) -> None:
    """The same with any model. The experts of a layer are one by one, or `stacked`, as transformers computes them."""
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, max_shard_size=-(-model_bytes // shards), save_original_format=not stacked)


def save_new(variant: str, folders: pytest.TempPathFactory, layers: int = 3) -> Path:
    """Write the checkpoint of a variant into a new folder, which is returned."""
    folder: Path = folders.mktemp(variant)
    save(variant, folder, layers=layers)
    return folder


def with_attention(model: PreTrainedModel, implementation: str) -> PreTrainedModel:
    """The same model, whose attention is "eager" or "sdpa"."""
    model.set_attn_implementation(implementation)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, token_ids: Sequence[int], chunk: int | None = None) -> torch.Tensor:
    """The logits after each token, fp32 [T, V]; with `chunk`, so many tokens at a time through the KV cache."""
    tokens, cache, parts, name = torch.tensor([list(token_ids)]), None, [], name_of_cache(model)
    for inputs in tokens.split(chunk or len(token_ids), dim=1):
        output = model(input_ids=inputs, use_cache=True, **{name: cache})
        cache = getattr(output, name)
        parts.append(output.logits[0].float())
    return torch.cat(parts)


@torch.no_grad()
def greedy_anew(model: PreTrainedModel, prompt_ids: Sequence[int], steps: int) -> Greedy:
    """The same without a cache: for each token the whole sequence is computed, with the frequencies of its length.

    A single token before it makes the model forget the longest sequence that it has seen.
    """
    model(input_ids=torch.tensor([[1]]), use_cache=False)
    token_ids, logprobs = list(prompt_ids), []
    for _ in range(steps):
        logprobs.append(model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1].log_softmax(-1))
        token_ids.append(int(logprobs[-1].argmax()))
    return Greedy(token_ids[len(prompt_ids) :], torch.stack(logprobs))


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt_ids: Sequence[int], steps: int) -> Greedy:
    """The `steps` most likely tokens after a prompt, one by one with the KV cache of transformers."""
    inputs, cache, name = torch.tensor([list(prompt_ids)]), None, name_of_cache(model)
    token_ids, logprobs = [], []
    for _ in range(steps):
        output = model(input_ids=inputs, use_cache=True, **{name: cache})
        logprobs.append(output.logits[0, -1].float().log_softmax(-1))
        token_ids.append(int(logprobs[-1].argmax()))
        inputs, cache = torch.tensor([token_ids[-1:]]), getattr(output, name)
    return Greedy(token_ids, torch.stack(logprobs))
