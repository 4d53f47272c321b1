"""Settings for any model, of which a dense one refuses some."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.models.model_config import read_config

OF_EXPERTS = ("gpu_experts", "host_experts")


def fitting(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of experts where the model in `folder` has none."""
    has_experts = bool(read_config(folder).expert_kinds)
    return {name: value for name, value in settings.items() if has_experts or name not in OF_EXPERTS}
