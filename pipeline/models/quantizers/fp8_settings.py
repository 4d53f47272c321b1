"""FP8 as transformers, DeepSeek and Qwen write it: a scale for each block, or one for each matrix."""

import re

from pipeline.formats.by_dtype import ByDtype
from pipeline.formats.fp4 import MXFP4_DEEPSEEK
from pipeline.formats.fp8 import Float8
from pipeline.models.expert_settings import ANY
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import HEAD_MODULE, Quantization, all_but, refused

ENDINGS = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
"""What writers call the scales."""
EXPERTS = re.compile(r".*\.experts\.\d+\.")


def read(settings: JsonObject) -> Quantization:
    """Without a list of what is left out the head is, as in transformers. Without `weight_block_size` each matrix has
    one scale, as in vLLM. Experts may be stored in FP4 beside that, as DeepSeek-V4 has them. Raises ConfigError.
    """
    written = ("fmt", ("e4m3", "")), ("scale_fmt", ("float", "ue8m0", "")), ("expert_dtype", ("fp8", "fp4", ANY, ""))
    for key, known in written:
        if settings.text(key) not in known:
            raise refused(settings, key)
    if settings.get("modules_to_convert"):
        raise refused(settings, "modules_to_convert")
    skips = settings.first("modules_to_not_convert", "ignored_layers")
    skipped = (HEAD_MODULE,) if settings.get(skips) is None else settings.texts(skips)
    rows, columns = settings.counts("weight_block_size", 2) if settings.get("weight_block_size") else (None, None)
    float8 = Float8("transformers", ENDINGS, rows, columns)
    any_of_both = ByDtype(MXFP4_DEEPSEEK, {"F8_E4M3": float8})
    of_experts = {"fp4": MXFP4_DEEPSEEK, ANY: any_of_both}.get(settings.text("expert_dtype"))
    experts = () if of_experts is None else ((EXPERTS, of_experts),)
    return Quantization((*experts, *all_but(settings, skips, skipped, float8)), "float8")
