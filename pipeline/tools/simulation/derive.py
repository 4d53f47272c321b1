"""Timings of a model that need not be there: from its shape, and from what the machine can move and compute."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

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

    layer: Layer
    item_bytes: float

    def parameters(self, part: str) -> int:
        """Count the parameters of one part of the layer."""
        return sum(math.prod(spec.shape) for spec in self.layer.specs("")[part])

    def operations(self, part: str, tokens: int) -> float:
        """Count two for each parameter and token, and what the tokens of one prompt have to do with each other."""
        return 2.0 * self.parameters(part) * tokens + (self._mixing(tokens) if attends(part) else 0.0)

    def _mixing(self, tokens: int) -> float:
        """Each token attends to those that it sees; or it reads a matrix twice in each value head, and changes it."""
        kind = self.layer.mixer
        if isinstance(kind, Attention):
            pairs = sum(position + 1 - kind.first_seen(position) for position in range(tokens))
            return 4.0 * kind.heads * kind.head_dim * pairs
        return 6.0 * kind.value_heads * kind.key_dim * kind.value_dim * tokens


def find_shapes(model: str) -> tuple[Shape, ...]:
    """The shape of each layer of the checkpoint in the folder, or of the config file, preset or cached model, of that
    name.

    Weights are bfloat16 unless the config says otherwise. Reading one imports torch.

    Raises ConfigError for what is neither, and as `read_config` does.
    """
    path = find_checkpoint(Path(model))
    if not os.path.lexists(path) and path.name == model:
        if model in PRESETS:
            found = described(JsonObject(f"preset {model}", PRESETS[model]))
            layers = found.family.layers(found.text, found.text.count("num_hidden_layers"))
            return tuple(Shape(layer=layer, item_bytes=BFLOAT16_BYTES) for layer in layers)
        raise ConfigError(f"--model: is no folder, and {unknown_name('preset', model, list(PRESETS))}")
    from pipeline.checkpoints.config_alone import config_alone
    from pipeline.checkpoints.shard_layout import stored_tensors, total_bytes
    from pipeline.formats.tensors import stored_name
    from pipeline.models.model_config import read_config

    alone = config_alone(path)
    config = read_config(path) if alone is None else alone.model
    dtype = stored_name(str(config.dtype or "bfloat16").removeprefix("torch."))
    shapes = []
    for index, layer in enumerate(config.layer_kinds):
        specs = [spec for part in layer.specs(f"model.layers.{index}").values() for spec in part]
        stored = total_bytes(stored_tensors(config, specs, dtype))
        shapes.append(Shape(layer=layer, item_bytes=stored / sum(math.prod(spec.shape) for spec in specs)))
    return tuple(shapes)


def derive_timings(
    shapes: Sequence[Shape],
    *,
    disk_gbps: float,
    h2d_gbps: float,
    tflops: float,
    batch_tokens: int,
    memory_gbps: float = math.inf,
) -> LayerTimings:
    """Seconds of each half-layer, the disk hop and the H2D hop apart; means over the layers, and those of each, where
    they differ.

    Rates are in 1e9 bytes per second and 1e12 operations per second, as reached, not as advertised. The pass computes
    `batch_tokens` tokens of one prompt, and reads the weights from device memory at least once. Not in it: the head.
    """

    def seconds(shape: Shape) -> dict[str, Any]:
        attn_bytes, ffn_bytes = (shape.parameters(part) * shape.item_bytes for part in (ATTN, FFN))
        attn, ffn = (shape.operations(part, batch_tokens) / (tflops * TERA) for part in (ATTN, FFN))
        return {
            "attn": max(attn, attn_bytes / (memory_gbps * GIGA)),
            "ffn": max(ffn, ffn_bytes / (memory_gbps * GIGA)),
            "attn_io": attn_bytes / (h2d_gbps * GIGA),
            "ffn_io": ffn_bytes / (h2d_gbps * GIGA),
            "attn_disk": attn_bytes / (disk_gbps * GIGA),
            "ffn_disk": ffn_bytes / (disk_gbps * GIGA),
        }

    found = {shape: seconds(shape) for shape in dict.fromkeys(shapes)}
    if len(found) == 1:
        return LayerTimings(layers=len(shapes), **found[shapes[0]])
    means: dict[str, Any] = {name: fmean(found[shape][name] for shape in shapes) for name in found[shapes[0]]}
    unlike = tuple(LayerTimings(layers=1, **found[shape]) for shape in shapes)
    return LayerTimings(layers=len(shapes), **means, unlike=unlike)
