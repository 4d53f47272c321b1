"""config.json in both spellings, the defaults that it leaves out, and everything that is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_configs import ABSENT, LLAMA_31_8B, MISTRAL, QWEN25, changed, write
from support.tiny_models import VARIANTS, save, save_and_read

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.model_config import read_config, read_generation_defaults
from pipeline.models.ropes import Llama3Scaling


@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_what_transformers_wrote(variant: str, tmp_path: Path) -> None:
    reference = save_and_read(variant, tmp_path, dtype=torch.float16).config
    config = read_config(tmp_path)
    assert config.family == reference.model_type
    assert (config.hidden_size, config.layers) == (reference.hidden_size, reference.num_hidden_layers)
    (attention,), (rope,), layer = config.attentions, config.ropes, config.layer_kinds[-1]
    assert (attention.heads, attention.kv_heads) == (reference.num_attention_heads, reference.num_key_value_heads)
    head_dim = getattr(reference, "head_dim", None) or reference.hidden_size // reference.num_attention_heads
    assert attention.head_dim == head_dim
    assert layer.feed_forward.size == reference.intermediate_size
    assert config.vocabulary_size == reference.vocab_size
    assert config.norm_epsilon == layer.norm_epsilon == reference.rms_norm_eps
    assert rope.theta == reference.rope_parameters["rope_theta"]
    assert config.tied_embeddings == reference.tie_word_embeddings
    assert attention.window == getattr(reference, "sliding_window", None)
    assert config.max_positions == reference.max_position_embeddings * (4 if variant == "llama_linear" else 1)
    assert config.dtype == torch.float16
    assert (config.eos_ids, config.bos_id) == ((2,), 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_spellings_mean_the_same(variant: str, tmp_path: Path) -> None:
    save(variant, tmp_path)
    new_spelling = read_config(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = None if rope["rope_type"] == "default" else {**rope, "type": rope.pop("rope_type")}
    values["torch_dtype"] = values.pop("dtype")
    assert "rope_parameters" not in values
    assert read_config(write(tmp_path, values)) == new_spelling


def test_reads_llama_31(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, LLAMA_31_8B))
    (attention,), (rope,) = config.attentions, config.ropes
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (32, 8, 128)
    assert rope.theta == 500000.0
    assert rope.scaling == Llama3Scaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
    )
    assert config.eos_ids == (128001, 128008, 128009)
    assert config.bos_id == 128000
    assert config.dtype == torch.bfloat16
    assert (attention.query_key_norms, config.tied_embeddings) == (None, False)
    assert config.layer_kinds[0].biases == frozenset()


def test_reads_qwen_whose_window_is_off(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, QWEN25))
    assert config.attentions[0].window is None
    assert config.layer_kinds[0].biases == {"q", "k", "v"}
    assert config.attentions[0].head_dim == 64


def test_qwen_window_of_all_layers_is_read_from_either_key(tmp_path: Path) -> None:
    windowed = changed(QWEN25, use_sliding_window=True, sliding_window=512)
    assert read_config(write(tmp_path, changed(windowed, max_window_layers=24))).attentions[0].window is None
    assert read_config(write(tmp_path, changed(windowed, max_window_layers=0))).attentions[0].window == 512
    kinds = ["sliding_attention"] * 24
    assert read_config(write(tmp_path, changed(windowed, layer_types=kinds))).attentions[0].window == 512


def test_keys_left_out_mean_what_transformers_assumes(tmp_path: Path) -> None:
    from transformers import MistralConfig

    reference = MistralConfig(**{key: value for key, value in MISTRAL.items() if key != "model_type"})
    config = read_config(write(tmp_path, MISTRAL))
    assert config.attentions[0].kv_heads == reference.num_key_value_heads == 8
    assert config.attentions[0].window == reference.sliding_window == 4096
    assert config.max_positions == reference.max_position_embeddings
    assert config.norm_epsilon == reference.rms_norm_eps
    assert config.ropes[0].theta == reference.rope_parameters["rope_theta"]
    assert (config.bos_id, config.eos_ids) == (reference.bos_token_id, (reference.eos_token_id,))
    assert config.dtype is None
    assert read_config(write(tmp_path, changed(MISTRAL, sliding_window=None))).attentions[0].window is None


def test_generation_config_speaks_for_the_end_tokens(tmp_path: Path) -> None:
    write(tmp_path, LLAMA_31_8B)
    write(tmp_path, {"eos_token_id": [7, 9]}, "generation_config.json")
    config = read_config(tmp_path)
    assert (config.eos_ids, config.bos_id) == ((7, 9), 128000)
    write(tmp_path, {"eos_token_id": None}, "generation_config.json")
    assert read_config(tmp_path).eos_ids == (128001, 128008, 128009)


@pytest.mark.parametrize(
    ("named", "ids"), [([2, 128256], (2,)), ([-1, 2, 2], (2, 2)), (128256, ()), (-1, ()), ([], ()), (2, (2,))]
)
def test_end_tokens_that_the_model_has_not_never_come(named: object, ids: tuple[int, ...], tmp_path: Path) -> None:
    values = changed(LLAMA_31_8B, eos_token_id=named, bos_token_id=128256, pad_token_id=-1)
    config = read_config(write(tmp_path, values))
    assert (config.eos_ids, config.bos_id) == (ids, None)
    write(tmp_path, LLAMA_31_8B)
    write(tmp_path, {"eos_token_id": named, "pad_token_id": 128256}, "generation_config.json")
    assert read_config(tmp_path).eos_ids == ids


def test_a_model_without_end_token(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, changed(LLAMA_31_8B, eos_token_id=None, bos_token_id=None)))
    assert (config.eos_ids, config.bos_id) == ((), None)


def test_nothing_that_the_config_names_is_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = read_config(write(tmp_path, changed(LLAMA_31_8B, auto_map=auto_map, trust_remote_code=True)))
    assert config.family == "llama"


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "another family": (changed(LLAMA_31_8B, model_type="rwkv"), "model_type: need .*; have 'rwkv'"),
    "no family": (changed(MISTRAL, model_type=ABSENT), "model_type: need .*; have nothing"),
    "another class": (changed(LLAMA_31_8B, architectures=["LlamaForTokenClassification"]), "architectures: .*Token"),
    "activation": (changed(LLAMA_31_8B, hidden_act="gelu"), "hidden_act: .*'gelu'"),
    "attention bias": (changed(MISTRAL, attention_bias=True), "attention_bias: .*True"),
    "mlp bias": (changed(QWEN25, mlp_bias=True), "mlp_bias: .*True"),
    "another family's class": (changed(LLAMA_31_8B, architectures=["MistralForCausalLM"]), "architectures: .*Mistral"),
    "unknown rope": (changed(LLAMA_31_8B, rope_scaling={"rope_type": "mrope"}), "rope_scaling: rope_type: .*'mrope'"),
    "rope of layer types": (
        changed(LLAMA_31_8B, rope_scaling=None, rope_parameters={"full_attention": {"rope_theta": 1.0}}),
        "rope_parameters: full_attention",
    ),
    "unlike layers": (
        changed(LLAMA_31_8B, per_layer_config={"3": {"intermediate_size": 5}}),
        "per_layer_config: .*intermediate_size",
    ),
    "looks ahead": (changed(LLAMA_31_8B, is_causal=False), "is_causal: .*False"),
    "partial rope": (changed(LLAMA_31_8B, partial_rotary_factor=0.5), "partial_rotary_factor: .*0.5"),
    "float8": (changed(LLAMA_31_8B, torch_dtype="float8_e4m3fn"), "torch_dtype: .*'float8_e4m3fn'"),
    "ropes that are not told apart": (
        changed(LLAMA_31_8B, rope_parameters={"sliding_attention": {"rope_theta": 1.0}}, rope_scaling=None),
        "rope_parameters: sliding_attention",
    ),
    "window without size": (
        changed(QWEN25, use_sliding_window=True, sliding_window=None, layer_types=["sliding_attention"] * 24),
        "layer_types: ",
    ),
    "llama with windows": (changed(LLAMA_31_8B, layer_types=["sliding_attention"] * 32), "layer_types: "),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name_with_the_list(case: str, tmp_path: Path) -> None:
    values, match = UNSUPPORTED[case]
    with pytest.raises(ConfigError, match=match) as caught:
        read_config(write(tmp_path, values))
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "Llama 2/3/3.1/3.2" in str(caught.value)
    assert "Qwen3" in str(caught.value)


NUMBERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@pytest.mark.parametrize(
    "value",
    [ABSENT, None, 0, -1, 2**31, 1.5, "32", True, [], float("nan")],
    ids=lambda value: "absent" if value is ABSENT else repr(value),
)
@pytest.mark.parametrize("key", NUMBERS)
def test_every_count_is_checked(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"config.json: {key}: need a whole number from 1 to \d+; have "):
        read_config(write(tmp_path, changed(LLAMA_31_8B, **{key: value})))


@pytest.mark.parametrize(
    "value", [0, -1e-6, "1e-5", True, float("inf"), float("nan"), 10**400], ids=lambda v: repr(v)[:9]
)
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_every_number_is_checked(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {key}: need a (finite )?number"):
        read_config(write(tmp_path, changed(LLAMA_31_8B, **{key: value})))


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "kv heads": (changed(LLAMA_31_8B, num_key_value_heads=5), "num_key_value_heads: need a divisor of .* 32; have 5"),
    "too many kv heads": (changed(LLAMA_31_8B, num_key_value_heads=64), "num_key_value_heads: need a divisor"),
    "odd head": (changed(LLAMA_31_8B, head_dim=127), "head_dim: need an even number.*; have 127"),
    "no whole head": (changed(LLAMA_31_8B, hidden_size=4100), "hidden_size: need a multiple of .* 32, or a head_dim"),
    "layers beyond reason": (changed(LLAMA_31_8B, num_hidden_layers=10**6), "num_hidden_layers: need .* to 10000"),
    "end token": (changed(LLAMA_31_8B, eos_token_id="</s>"), "eos_token_id: need token ids; have '</s>'"),
    "end tokens": (changed(LLAMA_31_8B, eos_token_id=[1, True]), "eos_token_id: need token ids"),
    "flag": (changed(LLAMA_31_8B, tie_word_embeddings="yes"), "tie_word_embeddings: need true or false; have 'yes'"),
    "text": (changed(LLAMA_31_8B, hidden_act=3), "hidden_act: need a string; have 3"),
    "rope is no object": (changed(LLAMA_31_8B, rope_scaling=[1]), "rope_scaling: need a JSON object"),
    "window": (changed(MISTRAL, sliding_window=0), "sliding_window: need a whole number from 1"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_numbers_that_can_never_work_are_refused(case: str, tmp_path: Path) -> None:
    values, match = IMPOSSIBLE[case]
    with pytest.raises(ConfigError, match=match):
        read_config(write(tmp_path, values))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'["model_type"]'], ids=lambda c: repr(c[:9])
)
def test_a_file_that_is_no_json_object_is_a_bad_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "need a folder with config.json and safetensors files$"),
        (["b-Q4.gguf"], "need .* safetensors files; b-Q4.gguf is a GGUF file, which is not read: fetch the model as"),
        (["a/config.json"], "need .* safetensors files, as .*/folder/a$"),
        (["models--a--b/x", "models--a--c/x"], "need .* as .*/models--a--b and 1 more there$"),
    ],
)
def test_a_folder_without_config_is_a_bad_checkpoint(files: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for file in files:
        (tmp_path / "folder" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "folder" / file).touch()
    with pytest.raises(CheckpointError, match=rf"config\.json: is missing; {says}"):
        read_config(tmp_path / "folder")


def test_generation_defaults_are_those_present(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == {}
    values = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "max_length": 4096, "bos_token_id": 1}
    defaults = read_generation_defaults(write(tmp_path, values, "generation_config.json"))
    assert defaults == {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


@pytest.mark.parametrize(("key", "value"), [("temperature", "hot"), ("top_p", True), ("do_sample", 1)])
def test_generation_defaults_of_the_wrong_type_are_refused(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {key}: need "):
        read_generation_defaults(write(tmp_path, {key: value}, "generation_config.json"))
