"""The formats in which checkpoints are written, by the names that commands have for them."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from pipeline.formats.encoding import Parts, float8_parts, int4_parts, mxfp4_parts

GROUP = 128
"""Columns that share a scale in int4."""


@dataclass(frozen=True, slots=True)
class WrittenFormat:
    """How compressed-tensors calls it and its options in config.json, and what encodes a matrix."""

    container: str
    weights: Mapping[str, object]
    encode: Callable[[torch.Tensor], Parts]

    @property
    def quantization_config(self) -> dict[str, object]:
        """What config.json says: all linear modules are quantised, but the head."""
        return {
            "quant_method": "compressed-tensors",
            "format": self.container,
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**self.weights, "symmetric": True}}},
            "ignore": ["lm_head"],
        }


WRITTEN_FORMATS: Mapping[str, WrittenFormat] = {
    "int4": WrittenFormat(
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP},
        functools.partial(int4_parts, group=GROUP),
    ),
    "fp8": WrittenFormat("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, float8_parts),
    "mxfp4": WrittenFormat(
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
        mxfp4_parts,
    ),
}
