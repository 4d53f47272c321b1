"""Penstock: runs language models that are bigger than the memory of the device that computes.

`async with Model.open(folder) as model: output = await model.generate("text")`. Names are imported when they are first
used, so that `penstock --help` and simulations need no torch.
"""

import importlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

try:
    importlib.import_module("actors.core")
except ImportError as error:
    hidden_by = getattr(sys.modules.get("actors"), "__file__", None) or "nothing of that name"
    raise ImportError(
        f"penstock needs its own package `actors`, and found {hidden_by}: uninstall or rename that one, or run "
        "in another folder"
    ) from error

if TYPE_CHECKING:
    __version__: str
    from actors.core.budget import Slot
    from actors.core.event import Event
    from actors.core.message import Message
    from actors.core.ports import Program
    from actors.core.stage import Mover, Stage
    from actors.core.trace import Trace
    from pipeline import errors
    from pipeline.api import Model
    from pipeline.config import Config, Settings
    from pipeline.engine.open_program import open_program
    from pipeline.engine.policies import POLICIES, Policy, Want
    from pipeline.engine.runtime import Runtime
    from pipeline.engine.settings import EngineSettings
    from pipeline.errors import (
        ActorFailed,
        Busy,
        CheckpointError,
        ClosedError,
        ConfigError,
        PenstockError,
        RequestError,
        ResourceError,
    )
    from pipeline.formats.tensors import TensorSpec
    from pipeline.generation.chunks import Chunk, Output
    from pipeline.generation.requests import CallArguments, ChatArguments
    from pipeline.text.prompts import Prompt
    from pipeline.text.tokenizer import ModelTokenizer
    from pipeline.tools.simulation.sim_line import simulate
    from pipeline.tools.simulation.timings import LayerTimings
    from pipeline.tools.trace.overlap import policy_table

_NAMES = {
    "actors.core.budget": "Slot",
    "actors.core.event": "Event",
    "actors.core.message": "Message",
    "actors.core.ports": "Program",
    "actors.core.stage": "Mover Stage",
    "actors.core.trace": "Trace",
    "pipeline.api": "Model",
    "pipeline.config": "Config Settings",
    "pipeline.engine.open_program": "open_program",
    "pipeline.engine.policies": "POLICIES Policy Want",
    "pipeline.engine.runtime": "Runtime",
    "pipeline.engine.settings": "EngineSettings",
    "pipeline.errors": "ActorFailed Busy CheckpointError ClosedError ConfigError PenstockError RequestError "
    "ResourceError",
    "pipeline.formats.tensors": "TensorSpec",
    "pipeline.generation.chunks": "Chunk Output",
    "pipeline.generation.requests": "CallArguments ChatArguments",
    "pipeline.generation.sessions": "Session",
    "pipeline.text.prompts": "Prompt",
    "pipeline.text.tokenizer": "ModelTokenizer",
    "pipeline.tools.simulation.sim_line": "simulate",
    "pipeline.tools.simulation.timings": "LayerTimings",
    "pipeline.tools.trace.overlap": "policy_table",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "POLICIES",
    "ActorFailed",
    "Busy",
    "CallArguments",
    "ChatArguments",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Config",
    "ConfigError",
    "EngineSettings",
    "Event",
    "LayerTimings",
    "Message",
    "Model",
    "ModelTokenizer",
    "Mover",
    "Output",
    "PenstockError",
    "Policy",
    "Program",
    "Prompt",
    "RequestError",
    "ResourceError",
    "Runtime",
    "Session",
    "Settings",
    "Slot",
    "Stage",
    "TensorSpec",
    "Trace",
    "Want",
    "__version__",
    "errors",
    "open_program",
    "policy_table",
    "simulate",
]


if not TYPE_CHECKING:  # which would let a type checker believe in every name

    def __getattr__(name: str) -> Any:
        if name == "errors":
            return importlib.import_module("pipeline.errors")
        if name == "__version__":
            return _version()
        if name not in _HOMES:
            raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed distribution's; a source tree that is not installed has none."""
    try:
        return importlib.metadata.version(importlib.import_module("pipeline.tools.doctor.names").DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
