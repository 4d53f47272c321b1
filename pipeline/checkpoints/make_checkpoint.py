"""Writes checkpoints of a real shape with random weights, tensor by tensor."""

import base64
import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import CONFIG_FILE
from pipeline.checkpoints.new_folder import check_space, new_folder
from pipeline.checkpoints.presets import PRESETS
from pipeline.checkpoints.random_weights import RandomWeights
from pipeline.checkpoints.shard_layout import SHARD_BYTES, model_specs, stored_tensors, total_bytes
from pipeline.checkpoints.written_formats import FORMAT_NAMES, left_out, written_format
from pipeline.checkpoints.written_shards import WrittenShards
from pipeline.errors import ConfigError, unknown_name
from pipeline.formats.encoding import Parts, mxfp4_parts
from pipeline.formats.tensors import stored_name
from pipeline.models.described import described
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import ModelConfig, parse_config

OVERRIDES = {
    "layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "ffn_size": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocabulary_size": ("vocab_size",),
    "tied_embeddings": ("tie_word_embeddings",),
    "attention_bias": ("attention_bias",),
    "mlp_bias": ("mlp_bias",),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "chosen_experts": ("num_experts_per_tok",),
    "expert_size": ("moe_intermediate_size",),
}
"""What may differ from the preset, and its names in config.json: that which the preset has, or else the first."""
OF_EXPERTS = ("experts", "chosen_experts", "expert_size")
DTYPES = ("float32", "float16", "bfloat16")
PLAIN = "bf16"
"""The name of no format, for presets that have one of their own."""
MOST_SKEW = 10.0
SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>")


def make_checkpoint(
    out: Path,
    like: str,
    *,
    dtype: str = "bfloat16",
    stored: str | None = None,
    seed: int = 0,
    routing_skew: float = 0.0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda written_bytes, total_bytes: None,
    **overrides: int | None,
) -> None:
    """Write the folder `out` with weights, config and tokenizer in the shape of the preset `like`.

    `RandomWeights` says what they are, and what a `routing_skew` does. Matrices are `stored` in one of `FORMAT_NAMES`,
    but for the embedding, the head and routers; None: as the preset has them, most in `dtype`; `PLAIN`: all in that.
    `progress` gets bytes written and bytes in total after each piece. `out` appears when it is complete.

    Raises:
        ConfigError: an unknown preset, override, dtype or format, a shape that cannot work, an `out` that is not empty,
            or a disk that is too full.
    """
    if not 0 <= routing_skew <= MOST_SKEW:
        raise ConfigError(f"routing_skew: need a number from 0 to {MOST_SKEW:g}, have {routing_skew:g}")
    settings = _settings(like, dtype, stored, overrides)
    model = _model(like, settings)
    if stored not in (None, PLAIN):
        settings["quantization_config"] = written_format(stored).quantization_config(left_out(model, head=True))
        model = _model(like, settings)
    with new_folder(out) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        _write_tokenizer(partial, model.vocabulary_size)
        tensors = stored_tensors(model, model_specs(model), stored_name(dtype))
        check_space(partial, total_bytes(tensors), "fewer layers")
        weights = RandomWeights(model, tensors, _encoder(stored), getattr(torch, dtype), seed, routing_skew)
        with WrittenShards(partial, tensors, shard_bytes) as written:
            _write_weights(written, weights, total_bytes(tensors), progress)


def _settings(like: str, dtype: str, stored: str | None, overrides: Mapping[str, int | None]) -> dict[str, object]:
    for what, name, known in (
        ("preset", like, PRESETS),
        ("dtype", dtype, DTYPES),
        *(("format", name, (PLAIN, *FORMAT_NAMES)) for name in (stored,) if name is not None),
        *(("override", name, OVERRIDES) for name in overrides),
    ):
        if name not in known:
            raise ConfigError(unknown_name(what, name, list(known)))
    settings = {**PRESETS[like], "torch_dtype": dtype}
    if stored is not None and settings.pop("quantization_config", None) is not None and stored != PLAIN:
        raise ConfigError(f"format: {like} is stored in a format of its own, or as {PLAIN}; have {stored!r}")
    for name, value in overrides.items():
        key = next((key for key in OVERRIDES[name] if key in settings), None)
        if key is None and name in OF_EXPERTS and value is not None:
            raise ConfigError(f"{name}: {like} has no such setting, have {value}; leave it out")
        settings |= {key or OVERRIDES[name][0]: value} if value is not None else {}
    vocabulary_size, least = settings["vocab_size"], 256 + len(SPECIAL_TOKENS)
    if not isinstance(vocabulary_size, int) or vocabulary_size < least:
        need = f"need at least {least} (all bytes and two special ids)"
        raise ConfigError(f"vocabulary_size: {need}, have {vocabulary_size}")
    settings["architectures"] = [described(JsonObject(f"like {like}", settings)).architecture]
    settings["bos_token_id"], settings["eos_token_id"] = vocabulary_size - 2, vocabulary_size - 1
    return settings


def _model(like: str, settings: dict[str, object]) -> ModelConfig:
    """Raises ConfigError that calls by the names of overrides what can never work."""
    try:
        return parse_config(JsonObject(f"like {like}", settings))
    except ConfigError as error:
        message = str(error).removesuffix("; correct the file")
        for name, keys in OVERRIDES.items():
            message = re.sub(rf"\b({'|'.join(keys)})\b", name, message)
        raise ConfigError(message) from error


def _encoder(stored: str | None) -> Callable[[torch.Tensor], Parts]:
    """What encodes what the model says is quantised: that of a preset is MXFP4."""
    return mxfp4_parts if stored in (None, PLAIN) else written_format(stored).encode


def _write_weights(
    written: WrittenShards, weights: RandomWeights, total: int, progress: Callable[[int, int], None]
) -> None:
    done_bytes = 0
    for drawn in weights.drawn():
        for name, at, stored in drawn:
            done_bytes += written.write(name, stored, at) - at
        progress(min(done_bytes, total), total)


def _write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    """A tiktoken vocabulary of all strings of one byte, of two, of three, in order, and two special ids at the end."""
    first_special = vocabulary_size - len(SPECIAL_TOKENS)
    strings = itertools.chain.from_iterable(itertools.product(range(256), repeat=length) for length in (1, 2, 3))
    with open(folder / "tokenizer.model", "wb") as file:
        for rank, string in enumerate(itertools.islice(strings, first_special)):
            file.write(b"%s %d\n" % (base64.b64encode(bytes(string)), rank))
    begin, end = SPECIAL_TOKENS
    special_tokens = {
        str(first_special + index): {"content": token, "special": True} for index, token in enumerate(SPECIAL_TOKENS)
    }
    settings = {"add_bos_token": True, "bos_token": begin, "eos_token": end, "added_tokens_decoder": special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
