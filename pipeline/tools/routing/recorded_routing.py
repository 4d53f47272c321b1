"""Recorded routing, and its file: a safetensors file of three tensors, whose metadata say of what model they are.

    rows         int32 [P]                 the rows of each pass
    from_prompt  uint8 [R]                 of each row, pass by pass, 1 where it is of a prompt, 0 of decoding
    ids          uint8 or uint16 [R, L, K] the experts that each row uses in each layer that has some, by rank

Metadata, all texts: `format` ("penstock routing"), `version` ("1"), `model` (a name, for people), `digest` (of the
checkpoint), `layers` (a JSON list, the index of each of the L layers), `experts` (in a layer), and `expert_bytes`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.errors import ConfigError, shown
from pipeline.system.small_files import open_plain_file
from pipeline.system.written_files import writing

FORMAT, VERSION = "penstock routing", "1"
MOST_EXPERTS = 1 << 16


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """Of what model routing is: `layers` are those that have experts, `experts` how many each has.

    `expert_bytes` is what one takes in the checkpoint, the mean where they differ.
    """

    name: str
    digest: str
    layers: tuple[int, ...]
    experts: int
    chosen: int
    expert_bytes: int


@dataclass(frozen=True, slots=True)
class RoutedPass:
    """The experts of one pass: whether all of its rows are of prompts, and `ids` [T, L, K]."""

    only_prompts: bool
    ids: np.ndarray

    def unions(self) -> list[list[int]]:
        """The experts of each layer that any row uses, rising."""
        return [np.unique(self.ids[:, place]).tolist() for place in range(self.ids.shape[1])]


@dataclass(frozen=True, slots=True)
class RecordedRouting:
    """What was chosen in a run, pass by pass; the arrays are as in the file."""

    model: RoutedModel
    rows: np.ndarray
    from_prompt: np.ndarray
    ids: np.ndarray

    def passes(self) -> Iterator[RoutedPass]:
        """The passes in order."""
        end = 0
        for rows in self.rows.tolist():
            begin, end = end, end + rows
            yield RoutedPass(bool(self.from_prompt[begin:end].all()), self.ids[begin:end])

    @property
    def decoded_tokens(self) -> int:
        """How many rows are of decoding."""
        return int(len(self.from_prompt) - self.from_prompt.sum())


def write_routing(path: Path, routing: RecordedRouting) -> None:
    """Write the file. Raises ConfigError when it cannot be written there."""
    model = routing.model
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": model.name,
        "digest": model.digest,
        "layers": json.dumps(model.layers),
        "experts": str(model.experts),
        "expert_bytes": str(model.expert_bytes),
    }
    ids = np.ascontiguousarray(routing.ids, np.uint8 if model.experts <= 256 else np.uint16)
    tensors: dict[str, np.ndarray] = {
        "rows": routing.rows.astype(np.int32),
        "from_prompt": routing.from_prompt.astype(np.uint8),
        "ids": ids,
    }
    try:
        with writing(path) as file:
            file.write(save(tensors, metadata))
    except OSError as error:
        raise ConfigError(f"routing {path}: cannot be written: {error.strerror or error}") from error


def read_routing(path: Path) -> RecordedRouting:
    """Read a file of `write_routing`. Raises ConfigError for anything else, naming the file and what is wrong."""
    try:
        open_plain_file(path).close()
        with safe_open(path, "numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if (have := (metadata.get("format"), metadata.get("version"))) != (FORMAT, VERSION):
                raise _fault(path, f"need a file of penstock trace-routing, version {VERSION}, have {shown(have)}")
            rows, from_prompt, ids = (file.get_tensor(name) for name in ("rows", "from_prompt", "ids"))
        return _checked(path, metadata, rows, from_prompt, ids)
    except OSError as error:
        raise ConfigError(f"routing {path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise _fault(path, f"is no file of penstock trace-routing, or damaged: {error}") from error
    except (KeyError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _fault(path, "its metadata are not what was written") from error


def _checked(path: Path, metadata: dict[str, str], *arrays: Any) -> RecordedRouting:
    rows, from_prompt, ids = arrays
    layers = json.loads(metadata["layers"])
    numbers = {name: int(metadata[name]) for name in ("experts", "expert_bytes")}
    sound = (
        (rows.dtype, from_prompt.dtype) == (np.int32, np.uint8)
        and ids.dtype in (np.uint8, np.uint16)
        and (rows.ndim, from_prompt.ndim, ids.ndim) == (1, 1, 3)
        and len(rows) > 0
        and rows.min() > 0
        and rows.sum() == len(from_prompt) == len(ids)
        and from_prompt.max() <= 1
        and isinstance(layers, list)
        and all(type(one) is int and one >= 0 for one in layers)
        and 0 < len(set(layers)) == len(layers) == ids.shape[1]
        and 0 < ids.shape[2] <= numbers["experts"] <= MOST_EXPERTS
        and ids.max() < numbers["experts"]
        and numbers["expert_bytes"] > 0
    )
    if not sound:
        raise _fault(path, "its tensors and metadata contradict each other")
    model = RoutedModel(metadata["model"], metadata["digest"], tuple(layers), chosen=ids.shape[2], **numbers)
    return RecordedRouting(model, rows, from_prompt, ids)


def _fault(path: Path, what: str) -> ConfigError:
    return ConfigError(f"routing {path}: {what}; record anew with penstock trace-routing")
