"""Rotary embedding in every kind of scaling, against transformers: bit by bit, in every spelling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_configs import ABSENT, changed, write
from support.tiny_models import save
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from pipeline.errors import ConfigError
from pipeline.models.model_config import read_config
from pipeline.models.ropes import LinearScaling, Llama3Scaling, YarnScaling
from pipeline.models.rotary import rotary, rotate

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 50,
    "intermediate_size": 104,
    "num_hidden_layers": 1,
    "num_attention_heads": 5,
    "max_position_embeddings": 96,
}
SHORT, LONG = [1.0, 1.25, 1.5, 2.0, 3.0], [1.0, 3.5, 7.0, 19.0, 40.0]
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 3.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 32,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 5e3, "factor": 4},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": YARN,
    "yarn with bounds": {**YARN, "beta_fast": 8, "beta_slow": 0.7, "rope_theta": 900.0},
    "yarn with one bound": {**YARN, "beta_fast": 2.0, "beta_slow": 2.0, "truncate": False},
    "yarn untruncated": {**YARN, "truncate": False, "factor": 7},
    "yarn with a null for truncate": {**YARN, "truncate": None},
    "yarn with magnitudes": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.4},
    "yarn with one magnitude": {**YARN, "mscale": 0.707, "mscale_all_dim": 0},
    "yarn with an attention factor": {**YARN, "attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 1.0},
    "yarn without factor": {**YARN, "factor": None},
    "yarn that shrinks": {**YARN, "factor": 0.5},
    "yarn without original": {key: value for key, value in YARN.items() if not key.startswith("original")},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "dynamic by a fraction": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 1.7},
    "longrope": LONGROPE,
    "longrope with a factor": {**LONGROPE, "factor": 8},
    "longrope with an attention factor": {**LONGROPE, "attention_factor": 1.25},
    "longrope with nothing to stretch": {**LONGROPE, "original_max_position_embeddings": 96},
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_has_the_bits_of_transformers_at_every_length(name: str, tmp_path: Path) -> None:
    reference = LlamaConfig(**SHAPE, rope_parameters=dict(ROPES[name]))
    config = read_config(write(tmp_path, {**SHAPE, "rope_parameters": ROPES[name]}))
    for tokens in (1, 31, 32, 33, 95, 96, 97, 131, 400):
        cos, sin = LlamaRotaryEmbedding(reference)(torch.zeros(1), torch.arange(tokens).unsqueeze(0))
        turn = rotary(*config.ropes, torch.arange(tokens), [config.rope_length(tokens)] * tokens)
        assert turn.cos.dtype == torch.float32
        assert torch.equal(turn.cos.squeeze(1), cos[0])
        assert torch.equal(turn.sin.squeeze(1), sin[0])


@pytest.mark.parametrize("name", ["yarn", "dynamic", "longrope"])
def test_each_row_of_a_pass_is_rotated_for_the_length_of_its_own_sequence(name: str, tmp_path: Path) -> None:
    config = read_config(write(tmp_path, {**SHAPE, "rope_parameters": ROPES[name]}))
    positions = torch.tensor([0, 1, 2, 30, 31, 130, 140, 141, 0])
    lengths = [config.rope_length(tokens) for tokens in (3, 3, 3, 200, 200, 131, 142, 142)]
    together = rotary(*config.ropes, positions, [*lengths, 0])
    for index, length in enumerate([*lengths, 0]):
        alone = rotary(*config.ropes, positions[index : index + 1], [length])
        assert torch.equal(alone.cos, together.cos[index : index + 1])
        assert torch.equal(alone.sin, together.sin[index : index + 1])


@pytest.mark.parametrize("name", ROPES)
def test_all_spellings_mean_the_same(name: str, tmp_path: Path) -> None:
    new_spelling = read_config(write(tmp_path, {**SHAPE, "rope_parameters": ROPES[name]}))
    rope = dict(ROPES[name])
    old = {**SHAPE, "rope_theta": rope.pop("rope_theta"), "rope_parameters": None}
    assert read_config(write(tmp_path, {**old, "rope_scaling": rope})) == new_spelling
    top_level = {key: rope.pop(key) for key in list(rope) if key.startswith("original")}
    assert read_config(write(tmp_path, {**old, **top_level, "rope_scaling": rope})) == new_spelling
    rope["type"] = rope.pop("rope_type")
    assert read_config(write(tmp_path, {**old, **top_level, "rope_scaling": rope})) == new_spelling
    if name == "default":
        for nothing in (None, {}, ABSENT):
            assert read_config(write(tmp_path, changed(old, rope_scaling=nothing))) == new_spelling


def test_contexts_are_as_long_as_scaling_makes_them(tmp_path: Path) -> None:
    most = {
        name: read_config(write(tmp_path, {**SHAPE, "rope_parameters": ROPES[name]})).max_positions for name in ROPES
    }
    assert most["default"] == most["llama3"] == most["longrope"] == most["yarn that shrinks"] == 96
    assert most["linear"] == most["dynamic"] == 4 * 96
    assert most["yarn"] == 3 * 32
    assert most["yarn untruncated"] == 7 * 32
    assert most["yarn without original"] == 3 * 96
    assert most["dynamic by a fraction"] == 163


def test_what_is_read_keeps_its_numbers(tmp_path: Path) -> None:
    def scaling(name: str, **changes: object) -> object:
        (rope,) = read_config(write(tmp_path, {**SHAPE, "rope_scaling": changed(ROPES[name], **changes)})).ropes
        return rope.scaling

    assert scaling("linear") == LinearScaling(factor=4.0)
    llama3 = scaling("llama3", original_max_position_embeddings=ABSENT)
    assert isinstance(llama3, Llama3Scaling)
    assert llama3.original_max_positions == 96
    yarn = scaling("yarn", finetuned=True)
    assert isinstance(yarn, YarnScaling)
    assert (yarn.fast_turns, yarn.slow_turns, yarn.truncate) == (32.0, 1.0, True)


def test_the_original_context_at_top_level_comes_first_but_not_before_that_of_a_kind(tmp_path: Path) -> None:
    both = {**SHAPE, "num_key_value_heads": 1, "original_max_position_embeddings": 24}
    growing = {"rope_parameters": {**YARN, "llama_4_scaling_beta": 1}}
    grows: dict[str, Any] = {**both, "model_type": "ministral3", "head_dim": 10, **growing}
    (rope,) = read_config(write(tmp_path, grows)).ropes
    assert isinstance(rope.scaling, YarnScaling)
    assert (rope.scaling.original_max_positions, rope.query_growth) == (24, (1.0, 24))
    plain = {**grows, "rope_parameters": {**grows["rope_parameters"], "rope_type": "linear"}}
    (rope,) = read_config(write(tmp_path, plain)).ropes
    assert rope.query_growth == (1.0, 32)
    kinds = {"layer_types": ["full_attention"], "rope_parameters": {"full_attention": YARN}}
    (rope,) = read_config(write(tmp_path, {**both, "model_type": "olmo3", **kinds})).ropes
    assert isinstance(rope.scaling, YarnScaling)
    assert rope.scaling.original_max_positions == 32


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no factor": ({"type": "linear"}, "factor: need a number above 0; have nothing"),
    "no factor of yarn": ({"type": "yarn"}, "factor: need a number above 0; have nothing"),
    "no factor of dynamic": ({"type": "dynamic", "factor": None}, "factor: need a number above 0; have nothing"),
    "negative": ({**YARN, "factor": -2}, "factor: need a number above 0; have -2"),
    "text": ({**YARN, "beta_fast": "32"}, "beta_fast: need a finite number; have '32'"),
    "crossed bounds": ({**YARN, "beta_fast": 1, "beta_slow": 2}, "beta_slow: need a number not above beta_fast = 1"),
    "magnitude": ({**YARN, "mscale": -1, "mscale_all_dim": 1}, "mscale: need a number above 0; have -1"),
    "no attention": ({**YARN, "attention_factor": 0}, "attention_factor: need a number above 0"),
    "truncate": ({**YARN, "truncate": 1}, "truncate: need true or false; have 1"),
    "base of yarn": ({**YARN, "rope_theta": 1.0}, "rope_theta: need a base from which frequencies above 0 follow.*1.0"),
    "base": ({"rope_theta": 1e300}, "rope_theta: need a base from which frequencies above 0 follow"),
    "overflow": ({"type": "dynamic", "factor": 1e300}, "rope_theta: need a base.*factor=1e\\+300"),
    "crossed factors": (
        {**ROPES["llama3"], "low_freq_factor": 4.0},
        "low_freq_factor: need a number below high_freq_factor = 4.0; have 4.0",
    ),
    "short list": ({**LONGROPE, "short_factor": SHORT[1:]}, "short_factor: need 5 numbers above 0; have .*4: "),
    "no list": ({**LONGROPE, "long_factor": 3.0}, "long_factor: need 5 numbers above 0; have 3.0"),
    "zero": ({**LONGROPE, "long_factor": [0, *LONG[1:]]}, "long_factor: need 5 numbers above 0"),
    "absent list": (changed(LONGROPE, long_factor=ABSENT), "long_factor: need 5 numbers above 0; have nothing"),
    "one position": (
        {**LONGROPE, "original_max_position_embeddings": 1},
        "original_max_.*: need a whole number from 2",
    ),
    "no position": ({**YARN, "original_max_position_embeddings": 0}, "original_max_.*: need a whole number from 1"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_numbers_that_can_never_work_are_refused_by_name(case: str, tmp_path: Path) -> None:
    rope, match = IMPOSSIBLE[case]
    with pytest.raises(ConfigError, match=match):
        read_config(write(tmp_path, {**SHAPE, "rope_scaling": rope}))


def test_a_head_of_two_channels_has_no_dynamic_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rope_theta: .*heads of 2 channels with DynamicScaling"):
        read_config(write(tmp_path, {**SHAPE, "head_dim": 2, "rope_scaling": ROPES["dynamic"]}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotate_has_the_bits_of_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    save("llama_gqa_llama3", tmp_path)
    config = read_config(tmp_path)
    (kind,) = config.attentions
    x_TNH = torch.randn(5, kind.heads, kind.head_dim).to(dtype)
    turn = rotary(*config.ropes, torch.arange(3, 8))
    x_1NTH = x_TNH.transpose(0, 1).unsqueeze(0)
    expected, _ = apply_rotary_pos_emb(
        x_1NTH, x_1NTH, turn.cos.to(dtype).view(1, 5, -1), turn.sin.to(dtype).view(1, 5, -1)
    )
    assert torch.equal(rotate(x_TNH, turn), expected[0].transpose(0, 1))
