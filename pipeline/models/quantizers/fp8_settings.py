"""FP8 as transformers, DeepSeek and Qwen write it: a scale for each block, or one for each matrix."""

import re

from pipeline.formats.fp4 import MXFP4_DEEPSEEK
from pipeline.formats.fp8 import Float8
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import HEAD_MODULE, Quantization, all_but, refused

ENDINGS = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
"""What writers call the scales."""
EXPERTS = re.compile(r".*\.experts\.\d+\.")


def read(settings: JsonObject) -> Quantization:
    """Without a list of what is left out the head is, as in transformers. Without `weight_block_size` each matrix has
    one scale, as in vLLM. Experts may be stored in FP4 beside that, as DeepSeek-V4 has them. Raises ConfigError.
    """
    written = ("fmt", ("e4m3", "")), ("scale_fmt", ("float", "ue8m0", "")), ("expert_dtype", ("fp8", "fp4", ""))
    for key, known in written:
        if settings.text(key) not in known:
            raise refused(settings, key)
    if settings.get("modules_to_convert"):
        raise refused(settings, "modules_to_convert")
    skips = settings.first("modules_to_not_convert", "ignored_layers")
    skipped = (HEAD_MODULE,) if settings.get(skips) is None else settings.texts(skips)
    rows, columns = settings.counts("weight_block_size", 2) if settings.get("weight_block_size") else (None, None)
    rules = all_but(settings, skips, skipped, Float8("transformers", ENDINGS, rows, columns))
    experts = ((EXPERTS, MXFP4_DEEPSEEK),) if settings.text("expert_dtype") == "fp4" else ()
    return Quantization((*experts, *rules), "float8")
