"""The model that is trained: a stock Llama with dropout, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import AttentionInterface, GenerationConfig, LlamaConfig, LlamaForCausalLM
from vocabulary import BEGIN_OF_TEXT_ID, END_OF_TEXT_ID, VOCABULARY_SIZE

ATTENTION_NAME = "causal_without_mask"


@dataclass(frozen=True)
class Recipe:
    """Sizes and settings of one training run.

    ``muon_lr`` times ``weight_decay`` sets how fast old weights fade (here: 500 steps); together with dropout that
    is what keeps some 50 passes over 9 million tokens from over-fitting.
    """

    layers: int = 10
    hidden_size: int = 256
    feed_forward_size: int = 640
    heads: int = 8
    key_value_heads: int = 4
    context: int = 1024
    rows_per_step: int = 64
    muon_lr: float = 0.02
    adamw_lr: float = 6e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    warm_up: float = 0.02  # share of the time


TINY = Recipe(
    layers=2, hidden_size=64, feed_forward_size=160, heads=4, key_value_heads=2, context=128, rows_per_step=16
)


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    AttentionInterface.register(ATTENTION_NAME, causal_attention)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.feed_forward_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BEGIN_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        attn_implementation=ATTENTION_NAME,
    )
    return LlamaForCausalLM(config)


def causal_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention over (batch, heads, tokens, head size).

    The stock implementation builds a mask once torch.compile traces it, which rules the flash kernel out.
    """
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2), None


def add_dropout(model: LlamaForCausalLM, probability: float) -> None:
    """Drop parts of the embedding and of every residual branch; Llama itself offers attention dropout only."""

    def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return functional.dropout(output, probability, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)


def save_model(model: LlamaForCausalLM, folder: Path) -> LlamaForCausalLM:
    """Write bfloat16 weights and configuration, and return what a reader loads from them, computing in float32."""
    probe = torch.arange(64, device=model.device)[None]
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        expected = model(probe).logits
    model.generation_config = GenerationConfig(bos_token_id=BEGIN_OF_TEXT_ID, eos_token_id=END_OF_TEXT_ID)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    loaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(model.device).eval()
    with torch.no_grad():
        difference = (expected - loaded(probe).logits).abs().max().item()
    print(f"largest difference of logits after loading: {difference:.2e}")
    if difference > 1e-3:
        raise SystemExit(f"the saved model's logits differ from the trained model's by up to {difference}")
    return loaded
