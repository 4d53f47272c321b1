"""How a model is run: frozen, keyword-only, every number checked before any work."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from actors.core.stage import Mover, Stage
from pipeline.errors import ConfigError

DEVICES = ("auto", "cpu", "cpu-copy", "cuda")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ACTORS = ("prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of `Model.open`.

    Attributes:
        device: "auto" (a GPU where there is one), "cpu", "cpu-copy" (copying each group as for a GPU), "cuda".
        dtype: the dtype to compute in; "auto" is the checkpoint's. Bytes travel in the checkpoint's dtype always.
        gpu_groups: weight groups that move, wait or compute on the device; this is what bounds the prefetch depth.
        host_groups: weight groups in pinned host memory; without effect on the CPU, whose memory is one.
        queues: messages that may wait in front of an actor, by the actor's name.
        insert: your own stages, by the name of the actor that they follow.
        context_tokens: prompt plus new tokens of one request, for which KV memory is set aside.
        max_tokens_per_pass: prompt tokens that one pass carries; longer prompts take several passes.
        reader_lanes, chunk_bytes: reads in flight at a time, and the size of one.
    """

    device: str = "auto"
    dtype: str = "auto"
    gpu_groups: int = 4
    host_groups: int = 4
    queues: Mapping[str, int] = field(default_factory=dict)
    insert: Mapping[str, Sequence[Stage | Mover]] = field(default_factory=dict)
    context_tokens: int | None = None
    max_tokens_per_pass: int = 512
    reader_lanes: int = 4
    chunk_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        _one_of("device", self.device, DEVICES)
        _one_of("dtype", self.dtype, DTYPES)
        for name in ("gpu_groups", "host_groups", "max_tokens_per_pass", "reader_lanes"):
            _at_least(name, getattr(self, name), 1)
        _at_least("chunk_bytes", self.chunk_bytes, 4096)
        if self.chunk_bytes % 4096:
            raise ConfigError(f"chunk_bytes: need a multiple of 4096, have {self.chunk_bytes}")
        if self.context_tokens is not None:
            _at_least("context_tokens", self.context_tokens, 1)
        for actor, size in self.queues.items():
            _one_of("queues", actor, ACTORS[1:])
            _at_least(f"queues[{actor!r}]", size, 1)
        for actor, stages in self.insert.items():
            _one_of("insert", actor, ACTORS[:-1])
            for stage in stages:
                if not isinstance(stage, Stage | Mover):
                    raise ConfigError(f"insert[{actor!r}]: need instances of Stage or Mover, have {stage!r}")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Config":
        """Make a config; an unknown name is an error that names the nearest."""
        known = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in known:
                raise ConfigError(unknown_name("setting", name, known))
        return cls(**arguments)


def unknown_name(what: str, name: str, known: Sequence[str]) -> str:
    """Say that `name` is unknown, and which known name is nearest."""
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known)}"
    return f"unknown {what} {name!r}{hint}"


def _one_of(setting: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{setting}: {unknown_name('value', str(value), known)}")


def _at_least(setting: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{setting}: need a whole number of at least {least}, have {value!r}")
