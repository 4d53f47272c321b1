"""Timings of a model that need not be there: from its shape, and from what the machine can move and compute."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints.presets import PRESETS
from pipeline.errors import ConfigError, unknown_name
from pipeline.formats.parts import ATTN, FFN, attends
from pipeline.models.described import described
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Attention, Layer
from pipeline.system.hub_cache import find_checkpoint
from pipeline.tools.simulation.timings import LayerTimings

GIGA, TERA = 1e9, 1e12
BFLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes that decide how many bytes and operations a layer has; `item_bytes` is the size of one weight.

    That of quantised weights is what is stored of a layer for each of them.
    """

    layers: int
    layer: Layer
    item_bytes: float

    def parameters(self, part: str) -> int:
        """Count the parameters of one part of a layer."""
        return sum(math.prod(spec.shape) for spec in self.layer.specs("")[part])

    def operations(self, part: str, tokens: int) -> float:
        """Count two for each parameter and token, and the attention of each token over itself and those before it."""
        kind, pairs = self.layer.mixer, tokens * (tokens + 1) / 2
        rows = kind.heads * kind.head_dim if attends(part) and isinstance(kind, Attention) else 0
        return 2.0 * self.parameters(part) * tokens + 4.0 * rows * pairs


def find_shape(model: str) -> Shape:
    """The shape of the checkpoint in the folder, or of the config file, preset or cached model, of that name.

    Weights are bfloat16 unless the config says otherwise. Reading one imports torch.

    Raises ConfigError for what is neither, and as `read_config` does.
    """
    path = find_checkpoint(Path(model))
    if not os.path.lexists(path) and path.name == model:
        if model in PRESETS:
            found = described(JsonObject(f"preset {model}", PRESETS[model]))
            layers = found.family.layers(found.text, found.text.count("num_hidden_layers"))
            return Shape(layers=len(layers), layer=layers[0], item_bytes=BFLOAT16_BYTES)
        raise ConfigError(f"--model: is no folder, and {unknown_name('preset', model, list(PRESETS))}")
    from pipeline.checkpoints.config_alone import config_alone
    from pipeline.checkpoints.shard_layout import stored_tensors, total_bytes
    from pipeline.formats.tensors import stored_name
    from pipeline.models.model_config import read_config

    alone = config_alone(path)
    config = read_config(path) if alone is None else alone.model
    layer, dtype = config.layer_kinds[0], stored_name(str(config.dtype or "bfloat16").removeprefix("torch."))
    specs = [spec for part in layer.specs("model.layers.0").values() for spec in part]
    stored = total_bytes(stored_tensors(config, specs, dtype))
    return Shape(layers=config.layers, layer=layer, item_bytes=stored / sum(math.prod(spec.shape) for spec in specs))


def derive_timings(
    shape: Shape, *, disk_gbps: float, h2d_gbps: float, tflops: float, batch_tokens: int
) -> LayerTimings:
    """Seconds of each half-layer, the disk hop and the H2D hop apart.

    Rates are in 1e9 bytes per second and 1e12 operations per second, as reached, not as advertised. The pass computes
    `batch_tokens` tokens of one prompt. Not in it: the head, and the time in which a small batch reads the weights from
    device memory.
    """
    attn_bytes, ffn_bytes = (shape.parameters(part) * shape.item_bytes for part in (ATTN, FFN))
    return LayerTimings(
        layers=shape.layers,
        attn=shape.operations(ATTN, batch_tokens) / (tflops * TERA),
        ffn=shape.operations(FFN, batch_tokens) / (tflops * TERA),
        attn_io=attn_bytes / (h2d_gbps * GIGA),
        ffn_io=ffn_bytes / (h2d_gbps * GIGA),
        attn_disk=attn_bytes / (disk_gbps * GIGA),
        ffn_disk=ffn_bytes / (disk_gbps * GIGA),
    )
