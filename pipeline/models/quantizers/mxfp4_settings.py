"""MXFP4 as gpt-oss has it: experts alone are quantised, and all else is as it is."""

import re

from pipeline.formats.fp4 import MXFP4_GPT_OSS
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import Quantization

EXPERTS = r".*\.experts\b"


def read(settings: JsonObject) -> Quantization:
    """What is left out never holds experts."""
    return Quantization(((re.compile(EXPERTS), MXFP4_GPT_OSS),))
