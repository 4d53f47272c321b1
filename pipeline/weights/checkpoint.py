"""A checkpoint folder as Hugging Face writes it: which tensor lies where. Only headers are read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.errors import CheckpointError
from pipeline.small_files import read_small_file
from pipeline.weights.header import TensorEntry, brief, os_errors_named, parse_json, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
INDEX_LIMIT_BYTES = 64 << 20
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells whether a file is still the one that was opened."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """From the result of `os.stat` or `os.fstat`."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder by name, and the identity of each file when its header was read."""

    folder: Path
    tensors: Mapping[str, TensorEntry]
    files: Mapping[Path, FileIdentity]


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Read the headers of `model.safetensors`, or of all the shards that `model.safetensors.index.json` names.

    Raises:
        CheckpointError: naming every file that is missing, truncated or unsound, and every tensor that the index
            promises and its shard lacks.
    """
    folder = Path(folder)
    if os.path.lexists(folder / SINGLE_FILE):
        tensors, files = _read_files(folder, [SINGLE_FILE])
        return Checkpoint(folder, tensors[SINGLE_FILE], files)
    if not os.path.lexists(folder / INDEX_FILE):
        raise CheckpointError(_nothing_found(folder))

    file_of_tensor = _read_index(folder / INDEX_FILE)
    tensors, files = _read_files(folder, sorted(set(file_of_tensor.values())))
    lacking = [
        f"{folder / file}: lacks tensor {brief(name)}, which {INDEX_FILE} promises"
        for name, file in file_of_tensor.items()
        if name not in tensors[file]
    ]
    if lacking:
        raise CheckpointError(first_faults(lacking))
    return Checkpoint(folder, {name: tensors[file][name] for name, file in file_of_tensor.items()}, files)


def first_faults(faults: list[str], most: int = 20) -> str:
    """The first of many faults, one a line, and how many more there are."""
    more = [f"... and {len(faults) - most} more"] if len(faults) > most else []
    return "\n".join([*faults[:most], *more])


def _read_files(folder: Path, names: list[str]) -> tuple[dict[str, dict[str, TensorEntry]], dict[Path, FileIdentity]]:
    tensors, files, faults = {}, {}, []
    for name in names:
        path = folder / name
        try:
            with os_errors_named(path):
                files[path] = FileIdentity.of(os.stat(path))  # before the header: a later change is then noticed
            tensors[name] = read_header(path)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(first_faults(faults))
    return tensors, files


def _read_index(path: Path) -> dict[str, str]:
    """The shard of each tensor, from an index that may lie about both."""
    weight_map = parse_json(read_small_file(path, INDEX_LIMIT_BYTES), str(path)).get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise CheckpointError(f"{path}: needs a weight_map from tensor names to file names")
    for name, file in weight_map.items():
        if not _is_plain_file_name(file):
            raise CheckpointError(
                f"{path}: tensor {brief(name)} is said to lie in {brief(file)}; only the name of a file in the same "
                "folder is allowed"
            )
    return weight_map


def _is_plain_file_name(name: object) -> bool:
    """A symbolic link of that name may point elsewhere: the Hugging Face cache is made of such links."""
    if type(name) is not str or name in ("", ".", "..") or not name.isprintable():
        return False
    return not any(separator in name for separator in "/\\:")


def _nothing_found(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: is not a folder; a checkpoint is a folder with {SINGLE_FILE} or {INDEX_FILE} in it"
    with os_errors_named(folder):
        names = sorted(os.listdir(folder))
    pickles = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
    if pickles:
        return (
            f"{folder}: has its weights only as {', '.join(pickles)}; pickle files can run code and are not read; "
            "convert them to safetensors"
        )
    return f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}; it has {', '.join(names) or 'no files'}"
