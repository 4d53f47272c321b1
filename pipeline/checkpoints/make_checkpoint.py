"""Writes checkpoints of a real shape with random weights, file by file, in little more memory than a file takes."""

import base64
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.checkpoints.checkpoint import CONFIG_FILE, INDEX_FILE
from pipeline.checkpoints.presets import PRESETS
from pipeline.checkpoints.shard_layout import Shapes, shards, tensor_shapes, total_bytes
from pipeline.errors import ConfigError, unknown_name
from pipeline.formats.tensors import stored_name
from pipeline.models.families import FAMILIES
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import ModelConfig, parse_config
from pipeline.system.sizes import human_bytes

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
SHARD_BYTES = 1_000_000_000
"""Of a file, unless one tensor is larger: safetensors writes a file from memory that holds all of it."""


def make_checkpoint(
    out: Path,
    like: str,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda written_bytes, total_bytes: None,
    **overrides: int | None,
) -> None:
    """Write the folder `out` with weights, config and tokenizer in the shape of the preset `like`.

    Norms are 1 and all else is normal with standard deviation 0.02, as transformers initialises them: activations
    stay finite through any number of layers, and the bytes do not compress. `progress` gets bytes written and bytes
    in total after each chunk. `out` appears when it is complete.

    Raises:
        ConfigError: an unknown preset, override or dtype, a shape that cannot work, an `out` that is not empty, or a
            disk that is too full.
    """
    settings = _settings(like, dtype, overrides)
    model = _model(like, settings)
    out = out.resolve()
    partial = _partial_folder(out)
    try:
        (partial / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        _write_tokenizer(partial, model.vocabulary_size)
        shapes = tensor_shapes(model)
        _check_space(partial, total_bytes(shapes, stored_name(dtype)))
        _write_shards(partial, shapes, dtype, seed, shard_bytes, progress)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _settings(like: str, dtype: str, overrides: Mapping[str, int | None]) -> dict[str, object]:
    for what, name, known in (
        ("preset", like, PRESETS),
        ("dtype", dtype, DTYPES),
        *(("override", name, OVERRIDES) for name in overrides),
    ):
        if name not in known:
            raise ConfigError(unknown_name(what, name, list(known)))
    settings = {**PRESETS[like], "torch_dtype": dtype, "hidden_act": "silu"}
    settings |= {OVERRIDES[name]: value for name, value in overrides.items() if value is not None}
    vocabulary_size, least = settings["vocab_size"], 256 + len(SPECIAL_TOKENS)
    if not isinstance(vocabulary_size, int) or vocabulary_size < least:
        need = f"need at least {least} (all bytes and two special ids)"
        raise ConfigError(f"vocabulary_size: {need}, have {vocabulary_size}")
    settings["architectures"] = [FAMILIES[str(settings["model_type"])].architecture]
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


def _partial_folder(out: Path) -> Path:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not an empty folder; choose another name or remove it")
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{partial}: is left from a run that was killed, or still runs; remove it") from error
    return partial


def _check_space(folder: Path, need_bytes: int) -> None:
    have_bytes = shutil.disk_usage(folder).free
    if have_bytes < need_bytes:
        raise ConfigError(
            f"{folder.parent}: the disk is too full: need {need_bytes} bytes ({human_bytes(need_bytes)}), have "
            f"{have_bytes} ({human_bytes(have_bytes)}); make room, or fewer layers"
        )


def _write_shards(
    folder: Path, shapes: Shapes, dtype: str, seed: int, shard_bytes: int, progress: Callable[[int, int], None]
) -> None:
    tag = stored_name(dtype)
    files = shards(shapes, tag, shard_bytes)
    total, drawn_bytes = total_bytes(shapes, tag), 0
    buffer, generator = torch.empty(CHUNK_ITEMS), torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    for file_name, held in files.items():
        tensors: dict[str, torch.Tensor] = {}
        for name, shape in held.items():
            tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            for chunk in _fill(name, tensors[name], buffer, generator):
                drawn_bytes += chunk.nbytes
                progress(drawn_bytes, total)
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
        # safetensors 0.8 writes files that only their owner may read, whatever the umask says.
        shutil.copymode(folder / CONFIG_FILE, folder / file_name)
        with open(folder / file_name, "rb") as file:
            os.fsync(file.fileno())  # a direct read right after would have to wait for it anyway
        weight_map |= dict.fromkeys(held, file_name)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _fill(name: str, tensor: torch.Tensor, buffer: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Draw in float32, and yield each chunk once it is filled: a whole tensor would need another of twice its size."""
    for chunk in tensor.view(-1).split(CHUNK_ITEMS):
        normal = buffer[: len(chunk)]
        if name.endswith("norm.weight"):
            normal.fill_(1.0)
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
