"""What writers of quantised checkpoints say of them, a file for each `quant_method`: which matrix has which format."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers import (
    awq_settings,
    bitsandbytes_settings,
    compressed_tensors_settings,
    fp8_settings,
    gptq_settings,
    modelopt_settings,
    mxfp4_settings,
)
from pipeline.models.quantizers.quantization import Quantization, refused

QUANTIZERS: Mapping[str, Callable[[JsonObject], Quantization]] = {
    "awq": awq_settings.read,
    "bitsandbytes": bitsandbytes_settings.read,
    "compressed-tensors": compressed_tensors_settings.read,
    "fp8": fp8_settings.read,
    "gptq": gptq_settings.read,
    "modelopt": modelopt_settings.read,
    "mxfp4": mxfp4_settings.read,
}
FILES = {
    "hf_quant_config.json": ("modelopt", "quantization"),
    "quantize_config.json": ("gptq", "bits"),
    "quant_config.json": ("awq", "zero_point"),
}
"""Where older writers say what config.json says now, and a key that tells their files from others of that name."""


def read_quantization(settings: JsonObject, folder: Path | None) -> Quantization:
    """Which matrices are quantised, and how, from config.json or the file that stands for it.

    Raises ConfigError for what is not read, with the list of what is.
    """
    key = settings.first("quantization_config", "compression_config")  # older files of compressed-tensors
    if settings.get(key) is None:
        files = [] if folder is None else [(folder / name, *told) for name, told in FILES.items()]
        for path, method, needed in files:
            if os.path.lexists(path) and (said := JsonObject.read(path)).get(needed) is not None:
                return QUANTIZERS[method](said)
        return Quantization()
    said = settings.section(key)
    if settings.get("expert_dtype") is not None:  # DeepSeek-V4 says it beside that
        said = said.with_absent({"expert_dtype": settings.get("expert_dtype")})
    method = said.text("quant_method") or (
        "bitsandbytes" if said.get("load_in_4bit") or said.get("load_in_8bit") else ""
    )
    if method not in QUANTIZERS:
        raise refused(said, "quant_method") if method else refused(settings, key)
    return QUANTIZERS[method](said)
