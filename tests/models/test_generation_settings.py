"""Every setting of generation_config.json is followed, or told of, or changes no text."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny_models

from pipeline import Model
from pipeline.errors import ConfigError
from pipeline.generation.folder import read_defaults
from pipeline.models.generation_settings import NOT_FOLLOWED, RULES
from pipeline.models.model_config import GENERATION_DEFAULTS

# Who computes how, what is returned beside text, which tokens begin and end a text, and how long it may be.
NO_TEXT = [
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "eos_token_id",
    "is_assistant",
    "low_memory",
    "max_cache_len",
    "max_length",
    "max_matching_ngram_size",
    "max_new_tokens",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
]
OTHER: dict[str, Any] = {
    "dola_layers": "low",
    "exponential_decay_length_penalty": [5, 1.1],
    "max_time": 3.0,
    "sequence_bias": [[[5], -1.0]],
    "stop_strings": ["end"],
    "watermarking_config": {"bias": 2.0},
    "constraints": [1],
    "force_words_ids": [[1]],
    "forced_decoder_ids": [[1, 2]],
}
PROMPT = [5, 9, 1, 77, 34, 201, 8, 8, 90, 14]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_models.save("llama_mha", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    return tmp_path


def state(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))


def warnings(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "penstock"):
        read_defaults(folder)
    return [record.getMessage() for record in caplog.records]


def test_every_setting_that_transformers_knows_is_known() -> None:
    known = {*GENERATION_DEFAULTS, *RULES, *NOT_FOLLOWED, *NO_TEXT}
    assert set(vars(transformers.GenerationConfig())) <= known


def test_all_that_is_not_followed_is_told_in_one_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = {name: OTHER.get(name, True if False in neutral else 0.5) for name, neutral in NOT_FOLLOWED.items()}
    state(folder, {**asked, "use_cache": False, "transformers_version": "5", "unheard_of": 1})
    [told] = warnings(folder, caplog)
    assert all(f"{name}=" in told for name in NOT_FOLLOWED)
    assert "use_cache" not in told
    assert "unheard_of" not in told


def test_values_that_change_nothing_are_not_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    neutral = {name: values[0] for name, values in NOT_FOLLOWED.items() if values}
    state(folder, {**neutral, **dict.fromkeys(RULES), "no_repeat_ngram_size": 0, "suppress_tokens": []})
    assert warnings(folder, caplog) == []
    state(folder, transformers.GenerationConfig().to_dict())
    assert warnings(folder, caplog) == []


def test_rules_are_told_as_defaults(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    state(folder, {"suppress_tokens": [*range(200), 10**6], "no_repeat_ngram_size": 3})
    [told] = warnings(folder, caplog)
    assert told.endswith("sampling defaults: suppress_tokens=[0, 1, 2, 3, 4, 5, ...], no_repeat_ngram_size=3")
    assert read_defaults(folder)["suppress_tokens"] == [*range(200)]


async def test_token_0_can_be_forced_as_any_other(folder: Path) -> None:
    state(folder, {"forced_bos_token_id": 0, "forced_eos_token_id": 0})
    async with Model.open(folder, device="cpu") as model:
        token_ids = (await model.generate([7], max_new_tokens=4, ignore_eos=True)).token_ids
    assert (token_ids[0], token_ids[-1]) == (0, 0)
    assert token_ids[1:-1] != (0, 0)


@pytest.mark.parametrize(
    "settings",
    [{"no_repeat_ngram_size": "3"}, {"bad_words_ids": [3]}, {"forced_eos_token_id": -1}, {"suppress_tokens": 5}],
)
def test_rules_that_can_never_work_are_refused_at_open(folder: Path, settings: dict[str, Any]) -> None:
    state(folder, settings)
    with pytest.raises(ConfigError, match=rf"generation_config.json: {next(iter(settings))}: .*; correct the file"):
        read_defaults(folder)


async def test_a_model_says_what_transformers_says_under_its_rules(folder: Path) -> None:
    async def generate(**arguments: Any) -> list[int]:
        async with Model.open(folder, device="cpu") as model:
            return list((await model.generate(PROMPT, max_new_tokens=12, ignore_eos=True, **arguments)).token_ids)

    plain = await generate()
    settings = {
        "suppress_tokens": plain[:1],
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [plain[1:2], plain[3:5]],
        "forced_eos_token_id": 7,
        "repetition_penalty": 1.2,
    }
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = reference.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)),
        generation_config=transformers.GenerationConfig(
            **settings, max_length=len(PROMPT) + 12, do_sample=False, pad_token_id=0
        ),
    )[0, len(PROMPT) :].tolist()
    assert await generate(**settings) == expected != plain
    state(folder, settings)
    assert await generate() == expected
