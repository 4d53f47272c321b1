"""Which of the objects in a config.json says what, where the text model is described inside another."""

from typing import Any

import pytest
import torch
from support.model_configs import ABSENT, MISTRAL, changed

from pipeline.errors import ConfigError
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import ModelConfig, parse_config

WHOLE = {"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"], "vision_config": {}}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
UP = "model.language_model.layers.3.mlp.up_proj"


def parsed(text: Any, **whole: Any) -> ModelConfig:
    return parse_config(JsonObject("config.json", changed(WHOLE, text_config=text, **whole)))


def test_a_nested_text_model_is_what_it_is_alone() -> None:
    alone, nested = parse_config(JsonObject("config.json", MISTRAL)), parsed(MISTRAL)
    assert (nested.family, nested.prefix, nested.tied_embeddings) == ("mistral3", "model.language_model.", True)
    assert nested.layer_kinds == alone.layer_kinds
    assert parsed(changed(MISTRAL, model_type=ABSENT)) == parsed(MISTRAL, architectures=ABSENT) == nested
    assert parsed(MISTRAL, architectures=["MistralForCausalLM"]) == nested


@pytest.mark.parametrize(("inside", "around", "tied"), [(True, False, False), (False, True, True), (False, None, True)])
def test_what_is_around_says_whether_the_embedding_is_tied(inside: bool, around: bool | None, tied: bool) -> None:
    text = {**MISTRAL, "tie_word_embeddings": inside}
    assert parsed(text, tie_word_embeddings=around).tied_embeddings is tied


def test_end_tokens_dtype_and_quantisation_are_read_from_either_and_first_from_what_is_around() -> None:
    text = {**MISTRAL, "eos_token_id": 3, "bos_token_id": 4, "torch_dtype": "float16", "quantization_config": FP8}
    inside = parsed(text)
    gptq = {"quant_method": "gptq", "bits": 8, "group_size": 64}
    around = parsed(text, eos_token_id=[5, 6], bos_token_id=7, dtype="bfloat16", quantization_config=gptq)
    assert (inside.eos_ids, inside.bos_id, inside.dtype) == ((3,), 4, torch.float16)
    assert (around.eos_ids, around.bos_id, around.dtype) == ((5, 6), 7, torch.bfloat16)
    assert "FP8" in inside.quantization.format_of(f"{UP}.weight").name
    assert "GPTQ" in around.quantization.format_of(f"{UP}.weight").name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text_config: need a JSON object that describes the text model; have nothing"),
        (changed(MISTRAL, model_type="pixtral"), "text_config: model_type: need a model that is supported"),
        (changed(MISTRAL, hidden_size=0), "text_config: hidden_size: need a whole number from 1"),
    ],
)
def test_what_is_wrong_inside_is_refused_by_its_place(text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(text)


def test_what_a_text_model_computes_alone_but_not_inside_another_is_refused_there() -> None:
    """transformers leaves the cap of Gemma 3 out inside a model that sees."""
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "final_logit_softcapping": 9.0}
    alone = parse_config(JsonObject("config.json", {"model_type": "gemma3_text", **text}))
    assert alone.outside.logits_softcap == 9
    whole = {"model_type": "gemma3", "text_config": text}
    with pytest.raises(ConfigError, match="text_config: final_logit_softcapping: need a model that is supported"):
        parse_config(JsonObject("config.json", whole))
    parse_config(JsonObject("config.json", {**whole, "text_config": changed(text, final_logit_softcapping=ABSENT)}))


@pytest.mark.parametrize(
    "skipped",
    [
        [UP],
        ["language_model.model.layers.3.mlp.up_proj"],
        ["model.layers.3.mlp.up_proj"],
        ["layers.3.mlp"],
        ["model.vision_tower", "layers.3.mlp.up_proj"],
    ],
)
def test_a_module_is_left_dense_under_whatever_prefix_the_writer_named_it(skipped: list[str]) -> None:
    settings = {**FP8, "modules_to_not_convert": [*skipped, "language_model.lm_head"]}
    formats = parsed(MISTRAL, quantization_config=settings).quantization
    names = (f"{UP}.weight", "lm_head.weight", "model.language_model.embed_tokens.weight")
    assert {formats.format_of(name).name for name in names} == {"not quantised"}
    assert "FP8" in formats.format_of(f"{UP.replace('3', '13')}.weight").name
