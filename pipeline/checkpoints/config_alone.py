"""A model of which only the config is there, or a preset: the sizes of its weights follow from it."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.presets import PRESETS
from pipeline.checkpoints.shard_layout import tensor_entries
from pipeline.checkpoints.written_formats import FORMAT_NAMES, written_format
from pipeline.errors import ConfigError, unknown_name
from pipeline.formats.tensors import stored_name
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import ModelConfig, parse_config, read_settings
from pipeline.models.quantizers.quantization import HEAD_MODULE
from pipeline.system.small_files import os_errors_named, why_no_folder

NEED = "need the folder of a checkpoint, its config.json, or the name of a preset"


@dataclass(frozen=True, slots=True)
class ConfigAlone:
    """A model without weights, and the checkpoint that it would be; `source` says from what its sizes follow."""

    model: ModelConfig
    checkpoint: Checkpoint
    source: str


def config_alone(path: Path, stored: str | None = None) -> ConfigAlone | None:
    """The model of a config file, of a folder without safetensors files, or of a preset; local paths win.

    None where a folder has weights. What declares no dtype counts as bfloat16, as most weights are; with `stored`, the
    name of a format, matrices count as `penstock convert` stores them. Raises ConfigError and CheckpointError for what
    is no model, and for a format that is unknown, or beside one that the config states.
    """
    if stored not in (None, *FORMAT_NAMES):
        raise ConfigError(f"--format: {unknown_name('format', stored, FORMAT_NAMES)}")
    name = str(path)
    if os.path.isdir(path):
        with os_errors_named(path):
            if any(file.endswith(".safetensors") for file in os.listdir(path)):
                return None
        return _alone(read_settings(path), "config.json", path, stored)
    if os.path.lexists(path):
        if path.suffix != ".json":
            raise ConfigError(f"{path}: {why_no_folder(path)}, and no config.json; {NEED}")
        settings = JsonObject.read(path)
        if settings.get("model_type") is None and settings.get("architectures") is None:
            raise ConfigError(f"{path}: is not the config.json of a model, as it names no model_type; {NEED}")
        return _alone(settings, path.name, path.parent, stored)
    if name not in PRESETS:
        need = unknown_name("preset", name, list(PRESETS)) if path.name == name else NEED
        raise ConfigError(f"{path}: {why_no_folder(path)}; {need}")
    settings = JsonObject(f"preset {name}", {**PRESETS[name], "dtype": "bfloat16"})
    return _alone(settings, f"the preset {name}", path, stored)


def _alone(settings: JsonObject, source: str, folder: Path, stored: str | None) -> ConfigAlone:
    model = parse_config(settings)
    if stored is not None:
        if model.quantization.rules:
            raise ConfigError(f"--format: {source} says in which format weights are stored; leave the option out")
        quantized = written_format(stored).quantization_config([HEAD_MODULE])
        model = parse_config(settings.replaced("quantization_config", quantized))
    dtype = str(model.dtype or "bfloat16").removeprefix("torch.")
    entries = tensor_entries(model, stored_name(dtype), folder)
    said = f"in {dtype}{'' if model.dtype else ', as it declares no dtype'}{f' and {stored}' if stored else ''}"
    return ConfigAlone(model, Checkpoint(folder, entries, {}), f"{source}, {said}")
