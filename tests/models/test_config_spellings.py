"""What config.json may leave out, spell in several ways, or ask for in some families only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_configs import ABSENT, LLAMA_31_8B, MISTRAL, QWEN25, changed, write

from pipeline.models.model_config import read_config

ATTENTION, MLP = {"q", "k", "v", "o"}, {"gate", "up", "down"}


@pytest.mark.parametrize(
    ("values", "biases"),
    [
        (changed(LLAMA_31_8B, attention_bias=True), ATTENTION),
        (changed(LLAMA_31_8B, mlp_bias=True), MLP),
        (changed(LLAMA_31_8B, attention_bias=True, mlp_bias=True), ATTENTION | MLP),
        (changed(QWEN25, model_type="qwen3", architectures=None, attention_bias=True), ATTENTION),
        (changed(QWEN25, attention_bias=True, mlp_bias=None), {"q", "k", "v"}),
        (changed(MISTRAL, attention_bias=False, mlp_bias=False), set()),
    ],
)
def test_each_family_has_the_biases_that_transformers_gives_it(
    values: dict[str, Any], biases: set[str], tmp_path: Path
) -> None:
    assert read_config(write(tmp_path, values)).layer_kinds[0].biases == biases


@pytest.mark.parametrize("name", ["LLaMAForCausalLM", "LlaMAForCausalLM", "llamaforcausallm"])
def test_the_class_may_be_spelt_as_it_was_once_and_either_of_class_and_family_may_be_absent(
    name: str, tmp_path: Path
) -> None:
    expected = read_config(write(tmp_path, LLAMA_31_8B))
    for stated in ([name], name, [name, "SomethingElse"], [], None, ABSENT):
        assert read_config(write(tmp_path, changed(LLAMA_31_8B, architectures=stated))) == expected
    assert read_config(write(tmp_path, changed(LLAMA_31_8B, architectures=[name], model_type=ABSENT))) == expected


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        ({"torch_dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"torch_dtype": None, "dtype": "half"}, torch.float16),
        ({"torch_dtype": ABSENT, "dtype": "float"}, torch.float32),
        ({"torch_dtype": "float16", "dtype": "auto"}, torch.float16),
        ({"torch_dtype": "float16", "dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "double"}, torch.float64),
        ({"torch_dtype": "auto"}, None),
        ({"torch_dtype": None}, None),
        ({"torch_dtype": ABSENT}, None),
    ],
)
def test_the_dtype_is_read_in_all_its_spellings_and_auto_says_nothing(
    names: dict[str, object], dtype: torch.dtype | None, tmp_path: Path
) -> None:
    assert read_config(write(tmp_path, changed(LLAMA_31_8B, **names))).dtype == dtype


def test_minimax_may_say_how_many_channels_turn_or_their_share(tmp_path: Path) -> None:
    sizes = {"model_type": "minimax_m2", "vocab_size": 9, "head_dim": 24}
    turned = [
        read_config(write(tmp_path, {**sizes, **said})) for said in ({"rotary_dim": 6}, {"partial_rotary_factor": 0.25})
    ]
    assert turned[0] == turned[1]
    assert [rope.channels for rope in turned[0].ropes] == [6]
