"""What NVIDIA's ModelOpt says, in config.json or in a file of its own."""

import fnmatch
import re

from pipeline.formats.dense import Dense
from pipeline.formats.fp4 import NVFP4_MODELOPT
from pipeline.formats.fp8 import Float8
from pipeline.formats.matrix import Format
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import EMBEDDING, LINEAR, Quantization, Rule, refused

ALGORITHMS: dict[str, tuple[Format, str]] = {
    "FP8": (Float8("ModelOpt", ("weight_scale",), None, None), "float8"),
    "NVFP4": (NVFP4_MODELOPT, "float4"),
}
"""Formats, and what activations are computed in."""


def read(settings: JsonObject) -> Quantization:
    """In names that are left out "*" stands for anything. Raises ConfigError."""
    settings = settings.section("quantization") or settings
    skips = settings.first("exclude_modules", "ignore")
    skipped: list[Rule] = [(re.compile(fnmatch.translate(name)), Dense()) for name in settings.texts(skips)]
    if (algorithm := settings.text("quant_algo")) not in ALGORITHMS:
        raise refused(settings, "quant_algo")
    found, activations = ALGORITHMS[algorithm]
    return Quantization(((re.compile(EMBEDDING), Dense()), *skipped, (re.compile(LINEAR), found)), activations)
