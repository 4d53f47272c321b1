"""Writes checkpoints of a real shape with random weights, tensor by tensor."""

import base64
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import CONFIG_FILE
from pipeline.checkpoints.new_folder import check_space, new_folder
from pipeline.checkpoints.presets import PRESETS
from pipeline.checkpoints.shard_layout import (
    SHARD_BYTES,
    model_specs,
    shards,
    stored_parts,
    stored_tensors,
    total_bytes,
)
from pipeline.checkpoints.written_formats import FORMAT_NAMES, written_format
from pipeline.checkpoints.written_shards import WrittenShards
from pipeline.errors import ConfigError, unknown_name
from pipeline.formats.tensors import TensorSpec, stored_dtype, stored_name
from pipeline.models.described import described
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import ModelConfig, parse_config
from pipeline.models.quantizers.quantization import HEAD_MODULE

OVERRIDES = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_size": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocabulary_size": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}
"""What may differ from the preset, and its name in config.json."""
DTYPES = ("float32", "float16", "bfloat16")
SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>")
STANDARD_DEVIATION = 0.02
CHUNK_ITEMS = 8 << 20


def make_checkpoint(
    out: Path,
    like: str,
    *,
    dtype: str = "bfloat16",
    stored: str | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda written_bytes, total_bytes: None,
    **overrides: int | None,
) -> None:
    """Write the folder `out` with weights, config and tokenizer in the shape of the preset `like`.

    Norms are 1 and all else is normal with standard deviation 0.02, as transformers initialises them: activations
    stay finite through any number of layers, and the bytes do not compress. Matrices are `stored` in one of
    `FORMAT_NAMES`, but for the embedding and the head; None: all in `dtype`. `progress` gets bytes written and bytes
    in total after each chunk. `out` appears when it is complete.

    Raises:
        ConfigError: an unknown preset, override, dtype or format, a shape that cannot work, an `out` that is not empty,
            or a disk that is too full.
    """
    settings = _settings(like, dtype, stored, overrides)
    model = _model(like, settings)
    with new_folder(out) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        _write_tokenizer(partial, model.vocabulary_size)
        draw = _Draw(model, dtype, stored, seed)
        check_space(partial, total_bytes(draw.tensors), "fewer layers")
        _write_shards(partial, shard_bytes, draw, progress)


def _settings(like: str, dtype: str, stored: str | None, overrides: Mapping[str, int | None]) -> dict[str, object]:
    for what, name, known in (
        ("preset", like, PRESETS),
        ("dtype", dtype, DTYPES),
        *(("format", name, FORMAT_NAMES) for name in (stored,) if name is not None),
        *(("override", name, OVERRIDES) for name in overrides),
    ):
        if name not in known:
            raise ConfigError(unknown_name(what, name, list(known)))
    settings = {**PRESETS[like], "torch_dtype": dtype}
    settings |= {OVERRIDES[name]: value for name, value in overrides.items() if value is not None}
    if stored is not None:
        settings["quantization_config"] = written_format(stored).quantization_config([HEAD_MODULE])
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
        for name, key in OVERRIDES.items():
            message = re.sub(rf"\b{key}\b", name, message)
        raise ConfigError(message) from error


def _write_shards(folder: Path, shard_bytes: int, draw: "_Draw", progress: Callable[[int, int], None]) -> None:
    total = total_bytes(draw.tensors)
    with WrittenShards(folder, draw.tensors, shard_bytes) as written:
        for name in itertools.chain.from_iterable(shards(draw.tensors, shard_bytes).values()):
            written.write(name, draw.tensor(name, lambda drawn_bytes: progress(drawn_bytes, total)))


class _Draw:
    """Draws the tensors of a model one by one, and encodes what is stored in another way than in `dtype`."""

    def __init__(self, model: ModelConfig, dtype: str, stored: str | None, seed: int) -> None:
        specs = model_specs(model)
        self.tensors = stored_tensors(model, specs, stored_name(dtype))
        self._parts = {spec: stored_parts(model, spec) for spec in specs}
        self._whole = {part.name: spec for spec, parts in self._parts.items() for part in parts}
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._norm_style = model.norm_style
        self._encode = None if stored is None else written_format(stored).encode
        self._buffer, self._generator = torch.empty(CHUNK_ITEMS), torch.Generator().manual_seed(seed)
        self._drawn_bytes = 0
        self._encoded: dict[str, torch.Tensor] = {}

    def tensor(self, name: str, progress: Callable[[int], None]) -> torch.Tensor:
        """The tensor of that name, of those that are left; `progress` gets the bytes of all that have been drawn."""
        if name not in self._encoded:
            spec = self._whole[name]
            stored_bytes = sum(self.tensors[part.name].nbytes for part in self._parts[spec])
            drawn, done_bytes = torch.empty(spec.shape, dtype=self._dtype), 0
            for chunk in _fill(drawn, self._same(spec), self._buffer, self._generator):
                done_bytes += chunk.nbytes
                progress(self._drawn_bytes + stored_bytes * done_bytes // drawn.nbytes)
            self._drawn_bytes += stored_bytes
            self._encoded |= self._encode_parts(spec, drawn)
        return self._encoded.pop(name)

    def _same(self, spec: TensorSpec) -> float | None:
        """Return what a norm stores of 1, and a scalar; None of what is drawn."""
        if spec.short in ("norm", "norm_after", "q_norm", "k_norm"):
            return 0.0 if self._norm_style == "plus_one" else 1.0
        return 1.0 if spec.short in ("gated_norm", "scalar") else None

    def _encode_parts(self, spec: TensorSpec, drawn: torch.Tensor) -> dict[str, torch.Tensor]:
        """What it is stored as, by name."""
        if self._encode is None or self._parts[spec] == (spec,):
            return {spec.name: drawn}
        stem = spec.name.removesuffix("weight")
        parts = {stem + ending: part for ending, part in self._encode(drawn).items()}
        return {name: part.to(stored_dtype(self.tensors[name].dtype)) for name, part in parts.items()}


def _fill(
    tensor: torch.Tensor, same: float | None, buffer: torch.Tensor, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Draw in float32, unless all are the `same`, and yield each chunk once it is filled.

    A whole tensor would need another of twice its size.
    """
    for chunk in tensor.view(-1).split(CHUNK_ITEMS):
        normal = buffer[: len(chunk)]
        if same is not None:
            normal.fill_(same)
        else:
            normal.normal_(0.0, STANDARD_DEVIATION, generator=generator)
        yield chunk.copy_(normal)


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
