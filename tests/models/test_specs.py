"""The tensors of the groups are those of the checkpoint, each exactly once, with its shape."""

from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open
from support.tiny_models import VARIANTS, save

from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_name_every_tensor_of_the_checkpoint(variant: str, tmp_path: Path) -> None:
    save(variant, tmp_path)
    config = read_config(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        on_disk = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    specs = [spec for group in group_specs(config).values() for spec in group]
    assert {spec.name: spec.shape for spec in specs} == on_disk
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    assert twice == (["model.embed_tokens.weight"] if config.tied_embeddings else [])


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_stand_in_compute_order(variant: str, tmp_path: Path) -> None:
    save(variant, tmp_path)
    config = read_config(tmp_path)
    groups = group_specs(config)
    halves = [(layer, half) for layer in range(config.layers) for half in ("attn", "ffn")]
    assert list(groups) == [*halves, (config.layers, "head"), (-1, "embed")]
    attention = {"qwen2": ["q", "k", "v"], "llama_biases": ["q", "k", "v", "o"], "qwen3_biases": ["q", "k", "v", "o"]}
    biases = [f"{short}_bias" for short in attention.get(variant.removesuffix("_window"), [])]
    norms = ["q_norm", "k_norm"] if config.family == "qwen3" else []
    assert [spec.short for spec in groups[1, "attn"]] == ["norm", "q", "k", "v", "o", *biases, *norms]
    biases = ["gate_bias", "up_bias", "down_bias"] if variant == "llama_biases" else []
    assert [spec.short for spec in groups[1, "ffn"]] == ["norm", "gate", "up", "down", *biases]
    assert [spec.short for spec in groups[config.layers, "head"]] == ["norm", "output"]
