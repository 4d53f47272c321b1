"""Which matrix has which format, as config.json says it or the files of settings that older writers have."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers import quantization, read_quantization

Q, UP, HEAD, EMBED = "model.layers.1.self_attn.q_proj", "model.layers.10.mlp.up_proj", "lm_head", "model.embed_tokens"
INT4 = {"num_bits": 4, "type": "int", "group_size": 128}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NOT = "not quantised"
CT4, CT8 = "compressed-tensors int4, groups of 128", "compressed-tensors int8, one scale a row"
CT_FP8 = "compressed-tensors FP8, a scale for each matrix"
GPTQ4, GPTQ8 = "GPTQ int4, groups of 128", "GPTQ int8, groups of 128"
FP8_BLOCKS = "transformers FP8, a scale for each block of 128 x 128"


def groups(*several: tuple[list[str], dict[str, Any]], **more: Any) -> dict[str, Any]:
    said = {f"group_{index}": {"targets": targets, **group} for index, (targets, group) in enumerate(several)}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": said, **more}


CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "nothing said": ({}, {Q: NOT, HEAD: NOT, EMBED: NOT}),
    "classes": (groups((["Linear"], {"weights": INT4})), {Q: CT4, UP: CT4, HEAD: CT4, EMBED: NOT}),
    "a name, a pattern, a class": (
        groups(
            (["Linear"], {"weights": INT4}),
            (["re:.*up_proj"], {"weights": INT8}),
            ([Q], {"weights": FP8, "format": "float-quantized"}),
            ignore=["lm_head"],
        ),
        {Q: CT_FP8, f"{Q}x": CT4, UP: CT8, HEAD: NOT, EMBED: NOT},
    ),
    "left out by pattern": (
        groups((["Linear", "Embedding"], {"weights": INT4}), ignore=[r"re:.*layers\.1\."]),
        {Q: NOT, UP: CT4, EMBED: CT4},
    ),
    "whole numbers of 4 bits in bytes": (
        groups((["Linear"], {"weights": INT4, "input_activations": INT8}), format="int-quantized"),
        {Q: "compressed-tensors int4 in bytes, groups of 128"},
    ),
    "only activations": (groups((["Linear"], {"input_activations": INT8})), {Q: NOT}),
    "fp8 leaves the head": (BLOCKS, {Q: FP8_BLOCKS, HEAD: NOT, EMBED: NOT}),
    "fp8 leaves what it lists": (
        {**BLOCKS, "modules_to_not_convert": ["model.layers.1", "up_proj"]},
        {Q: NOT, UP: NOT, "model.layers.10.mlp.gate_proj": FP8_BLOCKS, HEAD: FP8_BLOCKS},
    ),
    "fp8 leaves what chooses experts": (
        {**BLOCKS, "modules_to_not_convert": []},
        {
            **dict.fromkeys(("model.layers.1.mlp.gate", "model.layers.1.block_sparse_moe.gate"), NOT),
            **dict.fromkeys(("model.layers.1.mlp.router", "model.layers.1.mlp.shared_expert_gate"), NOT),
            **dict.fromkeys(("model.layers.1.self_attn.indexer.weights_proj", "layers.3.attn.compressor.wkv"), NOT),
            **dict.fromkeys(("embed", "head", "layers.3.attn.indexer.compressor.wgate"), NOT),
            "layers.3.attn.indexer.wq_b": FP8_BLOCKS,
            "model.layers.1.mlp.experts.0.gate_proj": FP8_BLOCKS,
            "model.layers.1.mlp.shared_expert.gate_proj": FP8_BLOCKS,
        },
    ),
    "fp8 of MiniMax": ({**BLOCKS, "ignored_layers": ["q_proj"]}, {Q: NOT, UP: FP8_BLOCKS, HEAD: FP8_BLOCKS}),
    "AWQ": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["model.layers.1"]},
        {Q: NOT, UP: "AWQ int4, groups of 64", HEAD: NOT},
    ),
    "GPTQ with its head": ({**GPTQ, "lm_head": True, "group_size": -1}, {HEAD: "GPTQ int4, one scale a row"}),
    "GPTQ of some modules": (
        {**GPTQ, "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]]},
        {Q: GPTQ4, UP: NOT, HEAD: NOT},
    ),
    "GPTQ with exceptions": (
        {**GPTQ, "dynamic": {r"-:.*layers\.1\.": {}, r"+:.*up_proj": {"bits": 8}}},
        {Q: NOT, UP: GPTQ8, "model.layers.2.mlp.down_proj": GPTQ4},
    ),
    "gpt-oss has no experts here": (
        {"quant_method": "mxfp4"},
        {Q: NOT, "model.layers.0.mlp.experts.up": "gpt-oss MXFP4"},
    ),
    "ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "model.layers.1.*"]},
        {Q: NOT, UP: "ModelOpt FP8, a scale for each matrix", HEAD: NOT, EMBED: NOT},
    ),
    "bitsandbytes without its name": (NF4, {Q: "bitsandbytes nf4", HEAD: NOT}),
    "bitsandbytes that leaves nothing": (
        {**NF4, "llm_int8_skip_modules": [], "bnb_4bit_use_double_quant": True},
        {HEAD: "bitsandbytes nf4, double quantisation", EMBED: NOT},
    ),
}
FILES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ModelOpt": (
        "hf_quant_config.json",
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}},
        "ModelOpt NVFP4",
    ),
    "GPTQ": ("quantize_config.json", {"bits": 8, "group_size": 128, "desc_act": True}, GPTQ8),
    "AWQ": (
        "quant_config.json",
        {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"},
        "AWQ int4, groups of 128",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_matrix_has_the_format_that_is_said_of_it(case: str) -> None:
    said, expected = CASES[case]
    quantization = read_quantization(JsonObject("config.json", {"quantization_config": said or None}), None)
    assert {module: quantization.format_of(f"{module}.weight").name for module in expected} == expected


def test_the_older_name_of_the_key_is_known() -> None:
    said = groups((["Linear"], {"weights": INT4}), sparsity_config={"format": "dense"})
    quantization = read_quantization(JsonObject("config.json", {"compression_config": said}), None)
    assert quantization.format_of(f"{Q}.weight").name == CT4


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_its_own_says_it_where_config_json_does_not(case: str, tmp_path: Path) -> None:
    name, said, expected = FILES[case]
    (tmp_path / name).write_text(json.dumps(said))
    quantization = read_quantization(JsonObject("config.json", {}), tmp_path)
    assert {quantization.format_of(f"{module}.weight").name for module in (Q, UP)} == {expected}
    assert quantization.format_of("lm_head.weight").name == NOT
    plain = read_quantization(JsonObject("config.json", {"quantization_config": BLOCKS}), tmp_path)
    assert plain.format_of(f"{Q}.weight").name == FP8_BLOCKS
    (tmp_path / name).write_text('{"per_channel": true}')  # another tool's, as ONNX converters write it
    assert read_quantization(JsonObject("config.json", {}), tmp_path).format_of(f"{Q}.weight").name == NOT


@pytest.mark.parametrize(
    ("said", "activations"),
    [
        (groups((["Linear"], {"weights": INT8, "input_activations": {"num_bits": 8, "type": "int"}})), "int8"),
        (groups((["Linear"], {"weights": INT4})), ""),
        (BLOCKS, "float8"),
        (GPTQ, ""),
    ],
)
def test_what_activations_would_be_is_known(said: dict[str, Any], activations: str) -> None:
    assert read_quantization(JsonObject("config.json", {"quantization_config": said}), None).activations == activations


def test_patterns_that_take_long_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for all names together, and grows with them; a limit of nothing is reached by any pattern."""
    said = {"quantization_config": groups((["Linear"], {"weights": INT4}), ignore=["re:.*(a|b)+.*proj.*x"])}
    patient = read_quantization(JsonObject("config.json", said), None)
    for layer in range(1000):
        assert patient.format_of(f"model.layers.{layer}.self_attn.q_proj.weight").name == CT4
    left = quantization.PATTERN_SECONDS + 1000 * quantization.MATCH_SECONDS - patient._left_seconds
    assert 0 < left < quantization.PATTERN_SECONDS / 10
    monkeypatch.setattr(quantization, "MATCH_SECONDS", 0.0)
    monkeypatch.setattr(quantization, "PATTERN_SECONDS", 0.0)
    hasty = read_quantization(JsonObject("config.json", said), None)
    with pytest.raises(
        ConfigError, match=r"matched in 0 s, have '\.\*\(a\|b\)\+\.\*proj\.\*x', which takes longer with 'model"
    ):
        hasty.format_of(f"{Q}.weight")


def test_names_of_a_list_mean_what_patterns_of_them_would() -> None:
    """As transformers matches them one by one; there may be hundreds."""
    names = ("lm_head", "model.layers.1", "mlp.gate", "model.layers.2.mlp.", "gate_proj")
    listed = quantization.Names(frozenset(names), names)
    modules = ("lm_head", "model.layers.1", "model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj", "mlp.gate.x")
    modules += ("model.layers.2.mlp.up_proj", "model.layers.3.mlp.gate", "x_gate_proj", "gate")
    for module in modules:
        patterns = [rf"(?:{item})(?:(?<=\.)|(?=\.|$))|.*{re.escape(item)}$" for item in names]
        assert listed.match(module) == any(re.match(pattern, module) for pattern in patterns), module
    assert [module for module in modules if listed.match(module)] == [modules[index] for index in (0, 1, 2, 4, 5, 6, 7)]


def test_names_are_looked_for_without_a_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "PATTERN_SECONDS", 0.0)
    for said in (
        {**BLOCKS, "modules_to_not_convert": [UP]},
        groups((["Linear"], {"weights": INT4}), ignore=[UP]),
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [UP]},
    ):
        found = read_quantization(JsonObject("config.json", {"quantization_config": said}), None)
        assert found.format_of(f"{UP}.weight").name == NOT != found.format_of(f"{Q}.weight").name


@pytest.mark.parametrize(
    "pattern", ["a" * 10_001, "(a{11}b){10}", "a{5,101}", f"a{{{'1' * 5000}}}", "a b", "(" * 5000, "["]
)
def test_patterns_that_would_take_memory_are_refused_by_name(pattern: str) -> None:
    said = {"quantization_config": groups((["Linear"], {"weights": INT4}), ignore=[f"re:{pattern}"])}
    with pytest.raises(ConfigError, match=r"config.json: quantization_config: ignore: need patterns of"):
        read_quantization(JsonObject("config.json", said), None)


def test_counted_repetitions_are_read() -> None:
    said = groups((["Linear"], {"weights": INT4}), ignore=[r"re:model\.layers\.\d{1,2}\.self_attn.{3,10}"])
    found = read_quantization(JsonObject("config.json", {"quantization_config": said}), None)
    assert [found.format_of(f"{module}.weight").name for module in (Q, UP)] == [NOT, CT4]
