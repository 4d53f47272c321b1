"""The formats of small floats, by the names of settings that are kept of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.formats import fp4
from pipeline.formats.fp8 import Float8
from pipeline.formats.matrix import Format
from pipeline.formats.nf4 import Nf4

GOLDEN = Path(__file__).parents[1] / "formats" / "golden" / "floats.safetensors"
FLOATS: Mapping[str, Callable[..., Format]] = {
    "transformers FP8": lambda block: Float8("transformers", ("weight_scale_inv", "scale"), *block),
    "compressed-tensors FP8": lambda block: Float8(
        "compressed-tensors", ("weight_scale",), *block, rounds_to_scales=True
    ),
    "ModelOpt FP8": lambda: Float8("ModelOpt", ("weight_scale",), None, None),
    "gpt-oss MXFP4": lambda: fp4.MXFP4_GPT_OSS,
    "compressed-tensors MXFP4": lambda: fp4.MXFP4,
    "compressed-tensors NVFP4": lambda: fp4.NVFP4,
    "ModelOpt NVFP4": lambda: fp4.NVFP4_MODELOPT,
    "bitsandbytes nf4": Nf4,
}
