"""How a model is set, as plain data: what a trace file and a report say of all its sections."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.config import Config
from pipeline.generation.pass_size import PassSize
from pipeline.models.model_config import ModelConfig
from pipeline.state.kv_room import KvRoom
from pipeline.state.state_layout import StateRoom


class Settled(Protocol):
    """What is one for all sections of an open model."""

    folder: Path
    config: ModelConfig
    settings: Config
    pass_size: PassSize
    kv_room: KvRoom
    state_room: StateRoom | None

    @property
    def dtype(self) -> torch.dtype:
        """What all compute in."""


def described(model: Settled, each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a model as they took effect, with what its sections say of theirs."""
    return {
        "model": f"{model.folder.name} ({model.config.family}, {model.config.layers} layers)",
        "dtype": str(model.dtype).removeprefix("torch."),
        **(each[0] if len(each) == 1 else _together(each)),
        "max_requests": model.settings.max_requests,
        "max_tokens_per_pass": model.pass_size.tokens,
        "max_pass_seconds": model.pass_size.max_seconds,
        "kv_tokens": model.kv_room.tokens,
        **({} if model.state_room is None else {"state_snapshots": model.state_room.snapshots}),
        "batch_invariant": model.settings.batch_invariant,
    }


def _together(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all sections say: of what is one for all, the first one's; what is not is added up, or listed."""
    return {
        **each[0],
        "device": ", ".join(one["device"] for one in each),
        "queues": {name: size for one in each for name, size in one["queues"].items()},
        "groups_per_pass": sum(one["groups_per_pass"] for one in each),
        "moving_groups": sum(one["moving_groups"] for one in each),
        "actors": [name for one in each for name in one["actors"]],
        "sections": [{"device": one["device"], "gpu_groups": one["gpu_groups"]} for one in each],
    }
