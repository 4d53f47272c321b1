"""Kimi K2, alone or inside a model that sees, as from K2.5 on: DeepSeek-V3 by another name."""

from dataclasses import replace

from pipeline.models.families import deepseek_v3
from pipeline.models.families.family import Wrapper

FAMILY = replace(deepseek_v3.FAMILY, name="kimi_k2")
WRAPPER = Wrapper(
    name="kimi_k25", architecture="KimiK25ForConditionalGeneration", texts=("deepseek_v3", "kimi_k2"), tied=True
)
