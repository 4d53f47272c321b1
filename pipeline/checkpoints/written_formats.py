"""The formats in which checkpoints are written, by the names that commands have for them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.formats.encoding import MXFP4_GROUP, Parts, float8_parts, int4_parts, mxfp4_parts
from pipeline.models.model_config import ModelConfig
from pipeline.models.quantizers.quantization import HEAD_MODULE
from pipeline.models.specs import group_specs

FORMAT_NAMES = ("int4", "fp8", "mxfp4")
GROUPS = (128, 64, 32)
"""How many columns may share a scale in int4: what all readers have kernels for."""


@dataclass(frozen=True, slots=True)
class WrittenFormat:
    """How compressed-tensors calls it and its options in config.json, and what encodes rows of a matrix.

    Columns must be a multiple of `group`, where it is not None.
    """

    container: str
    group: int | None
    weights: Mapping[str, object]
    encode: Callable[[torch.Tensor], Parts]

    def quantization_config(self, ignored: Sequence[str]) -> dict[str, object]:
        """What config.json says: all linear modules are quantised, but those that are `ignored`."""
        weights = {**self.weights, "group_size": self.group, "symmetric": True, "dynamic": False}
        activations = {"input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": self.container,
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": weights, **activations, "format": self.container}
            },
            "ignore": [*ignored],
        }


def left_out(model: ModelConfig, *, head: bool) -> list[str]:
    """The modules that are not quantised beside the embedding: what chooses and weighs experts, and maybe the head."""
    specs = [spec for group in group_specs(model).values() for spec in group if spec.short in ("router", "shared_gate")]
    return [HEAD_MODULE] * head + [spec.name.removesuffix(".weight") for spec in specs]


def written_format(name: str, group: int = GROUPS[0]) -> WrittenFormat:
    """That of one of `FORMAT_NAMES`; in int4 so many columns share a scale."""
    if name == "int4":
        weights = {"num_bits": 4, "type": "int", "strategy": "group"}
        return WrittenFormat("pack-quantized", group, weights, functools.partial(int4_parts, group=group))
    if name == "fp8":
        weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
        return WrittenFormat("float-quantized", None, weights, float8_parts)
    weights = {"num_bits": 4, "type": "float", "strategy": "group", "scale_dtype": "torch.uint8"}
    return WrittenFormat("mxfp4-pack-quantized", MXFP4_GROUP, weights, mxfp4_parts)
