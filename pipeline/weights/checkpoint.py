"""A checkpoint folder as Hugging Face writes it: which tensor lies where. Only headers are read."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.errors import CheckpointError
from pipeline.small_files import os_errors_named, read_small_file
from pipeline.weights.header import TensorEntry, brief, parse_json, read_header
from pipeline.weights.shard import Shard, require_descriptors

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
INDEX_LIMIT_BYTES = 64 << 20
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder by name, and its weight files, which are open until `close` or the end of a `with`."""

    folder: Path
    tensors: Mapping[str, TensorEntry]
    files: Mapping[Path, Shard]

    def close(self) -> None:
        """Close the weight files; no read may be in flight. Closing twice is harmless."""
        for shard in self.files.values():
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_checkpoint(folder: Path | str, *, direct: bool = True) -> Checkpoint:
    """Open `model.safetensors`, or all the shards that `model.safetensors.index.json` names, and read their headers.

    Each file is opened once, and once more for `direct` reads; whoever reads it later shares these descriptors.

    Raises:
        ConfigError: the process may not open so many files.
        CheckpointError: naming every file that is missing, truncated or unsound, every tensor that the index
            promises and its shard lacks, and every tensor that two shards hold; an adapter lies beside the weights.
    """
    folder = Path(folder)
    single = os.path.lexists(folder / SINGLE_FILE)
    if not single and not os.path.lexists(folder / INDEX_FILE):
        raise CheckpointError(_nothing_found(folder))
    if os.path.lexists(folder / ADAPTER_FILE):
        raise CheckpointError(
            f"{folder / ADAPTER_FILE}: says that an adapter changes these weights, which is not supported; merge it "
            "into them, or remove the file to run the model without it"
        )
    file_of_tensor = {} if single else _read_index(folder / INDEX_FILE)
    names = [SINGLE_FILE] if single else sorted(set(file_of_tensor.values()))
    require_descriptors(folder, len(names) * (2 if direct else 1))
    with ExitStack() as opened:
        tensors, files = _read_files(folder, names, direct, opened)
        found = tensors[SINGLE_FILE] if single else _promised(folder, file_of_tensor, tensors)
        opened.pop_all()
        return Checkpoint(folder, found, files)


def first_faults(faults: list[str], most: int = 20) -> str:
    """The first of many faults, one a line, and how many more there are."""
    more = [f"... and {len(faults) - most} more"] if len(faults) > most else []
    return "\n".join([*faults[:most], *more])


def _read_files(
    folder: Path, names: list[str], direct: bool, opened: ExitStack
) -> tuple[dict[str, dict[str, TensorEntry]], dict[Path, Shard]]:
    """The tensors of each file by name, and the files by path, which `opened` closes."""
    tensors, files, faults = {}, {}, []
    for name in names:
        try:
            shard = Shard(folder / name, direct=direct)
            opened.callback(shard.close)
            tensors[name], files[shard.path] = read_header(shard), shard
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(first_faults(faults))
    return tensors, files


def _promised(
    folder: Path, file_of_tensor: Mapping[str, str], tensors: Mapping[str, Mapping[str, TensorEntry]]
) -> dict[str, TensorEntry]:
    """All that the shards hold, also what the index does not name: each tensor must have one place."""
    faults = [
        f"{folder / file}: lacks tensor {brief(name)}, which {INDEX_FILE} promises"
        for name, file in file_of_tensor.items()
        if name not in tensors[file]
    ]
    found: dict[str, TensorEntry] = {}
    for entries in tensors.values():
        for name, entry in entries.items():
            if name in found:
                faults.append(f"{entry.file}: holds tensor {brief(name)}, and so does {found[name].file}; keep one")
            found[name] = entry
    if faults:
        raise CheckpointError(first_faults(faults))
    return found


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
