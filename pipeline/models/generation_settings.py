"""What `generation_config.json` says about how tokens are chosen: what is followed, and what is not."""

import os
from pathlib import Path
from typing import Any

from pipeline.models.json_object import JsonObject

# Each with the values, beside null, that change no text; 0 is a token like any other. How long an answer may be
# (`max_length`, `max_new_tokens`) is not among them: a call says so, and an answer that it ends tells why.
RULES: dict[str, tuple[object, ...]] = {
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "forced_bos_token_id": ([],),
    "forced_eos_token_id": ([],),
}
NOT_FOLLOWED: dict[str, tuple[object, ...]] = {
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "guidance_scale": (1,),
    "length_penalty": (1,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "sequence_bias": ({}, []),
    "stop_strings": ([], ""),
    "token_healing": (False,),
    "top_h": (1,),
    "typical_p": (1,),
    "watermarking_config": ({},),
}


def read_rules(folder: Path, vocabulary_size: int) -> dict[str, Any]:
    """The rules that the file states, unchecked. Tokens to suppress that the model has not are left out: none is said.

    Raises CheckpointError for a file that holds no JSON object.
    """
    rules = _stated(_read(folder), RULES)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if isinstance(ids := rules.get(name), list):
            rules[name] = [one for one in ids if not isinstance(one, int) or 0 <= one < vocabulary_size]
    return rules


def read_not_followed(folder: Path) -> dict[str, Any]:
    """What the file asks for that would change text, and is not done. Raises CheckpointError as `read_rules`."""
    return _stated(_read(folder), NOT_FOLLOWED)


def _stated(settings: JsonObject, neutral: dict[str, tuple[object, ...]]) -> dict[str, Any]:
    """The settings that are not null, nor one of the values that change no text."""
    stated = {name: settings.get(name) for name in neutral}
    return {name: value for name, value in stated.items() if value is not None and value not in neutral[name]}


def _read(folder: Path) -> JsonObject:
    path = folder / "generation_config.json"
    return JsonObject.read(path) if os.path.lexists(path) else JsonObject(str(path), {})
