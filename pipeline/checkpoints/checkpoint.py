"""A checkpoint folder as Hugging Face writes it: which tensor lies where. Only headers are read."""

import itertools
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeGuard

from pipeline.checkpoints.header import TensorEntry, brief, parse_json, read_header
from pipeline.checkpoints.leftovers import counts
from pipeline.checkpoints.shard import Shard, require_descriptors
from pipeline.errors import CheckpointError
from pipeline.formats.parts import used_prefixes
from pipeline.system.collecting import collected_later
from pipeline.system.hub_cache import how_to_fetch
from pipeline.system.small_files import os_errors_named, read_json_file, read_small_file, require_folder

CONFIG_FILE, CONFIG_KEY = "config.json", "transformers_weights"
SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
SINGLE_FILE, INDEX_FILE = f"model{SUFFIX}", f"model{INDEX_SUFFIX}"
NUMBERED = re.compile(rf"(?P<stem>.*?)(?P<number>\d{{1,9}})-of-(?P<count>\d{{1,9}}){re.escape(SUFFIX)}")
OTHER_FORMATS = ("consolidated", "adapter_model")
ADAPTER_FILE = "adapter_config.json"
INDEX_LIMIT_BYTES = 64 << 20
MOST_FAULTS = 20
"""Faults of a checkpoint that an error lists; of more it says how many there are."""
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder by name, and its weight files, which are open until `close` or the end of a `with`.

    `promised` are tensors that the index names and no file holds, with the file that it names. `repeated` are tensors
    that two files hold, with the second of them. Neither matters where the model needs no such tensor. `prefixes` are
    what stands before the names of the decoder's tensors.
    """

    folder: Path
    tensors: Mapping[str, TensorEntry]
    files: Mapping[Path, Shard]
    promised: Mapping[str, Path] = field(default_factory=dict)
    repeated: Mapping[str, Path] = field(default_factory=dict)
    prefixes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefixes", used_prefixes(self.tensors))

    def content(self, name: str) -> bytes:
        """The bytes of a small tensor, read now, or none of a file that is only planned.

        Raises CheckpointError when they cannot be read.
        """
        entry = self.tensors[name]
        return self.files[entry.file].read(entry.start, entry.length) if entry.file in self.files else b""

    def expect(self, name: str) -> None:
        """Ask the disk for the bytes of a small tensor, whose `content` will be wanted soon."""
        entry = self.tensors[name]
        if entry.file in self.files:
            self.files[entry.file].expect(entry.start, entry.length)

    def close(self) -> None:
        """Close the weight files; no read may be in flight. Closing twice is harmless."""
        for shard in self.files.values():
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@collected_later()
def open_checkpoint(folder: Path | str, *, direct: bool = True) -> Checkpoint:
    """Open the weight files of a folder, and read their headers.

    Those are the file or the index that config.json names as `transformers_weights`; else `model.safetensors`; else all
    shards that `model.safetensors.index.json` names; else the only safetensors file, or set of numbered ones, there is.
    Each file is opened once, and once more for `direct` reads; all later readers share these descriptors. One may
    be missing where the index promises nothing of it that the next token may depend on.

    Raises:
        ConfigError: the process may not open so many files.
        CheckpointError: naming every file that is missing, truncated or unsound; an adapter lies beside the weights.
    """
    folder = Path(folder)
    names, file_of_tensor = weight_files(folder)
    spare = {*file_of_tensor.values()} - {file for name, file in file_of_tensor.items() if counts(name)}
    names = [name for name in names if name not in spare or os.path.lexists(folder / name)] or names
    if os.path.lexists(folder / ADAPTER_FILE):
        raise CheckpointError(
            f"{folder / ADAPTER_FILE}: says that an adapter changes these weights, which is not supported; merge it "
            "into them, or remove the file to run the model without it"
        )
    require_descriptors(folder, len(names) * (2 if direct else 1))
    with ExitStack() as opened:
        entries, files = _read_files(folder, names, direct, opened)
        tensors: dict[str, TensorEntry] = {}
        repeated = {}
        for name, entry in itertools.chain.from_iterable(one.items() for one in entries):
            if tensors.setdefault(name, entry) is not entry:
                repeated[name] = entry.file
        promised = {name: folder / file for name, file in file_of_tensor.items() if name not in tensors}
        opened.pop_all()
        return Checkpoint(folder, tensors, files, promised, repeated)


def first_faults(faults: list[str]) -> str:
    """The first of many faults, one a line, and how many more there are."""
    more = [f"... and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return "\n".join([*faults[:MOST_FAULTS], *more])


def weight_files(folder: Path) -> tuple[list[str], Mapping[str, str]]:
    """The names of the weight files, from the folder, and the file of each tensor as far as an index tells.

    Raises CheckpointError where there are none, or the index or config.json is unsound.
    """
    named = _named_in_config(folder)
    for file in (SINGLE_FILE, INDEX_FILE) if named is None else ():
        named = named or (file if os.path.lexists(folder / file) else None)
    if named is None:
        return _only_files(folder), {}
    if not named.endswith(INDEX_SUFFIX):
        return [named], {}
    file_of_tensor = _read_index(folder / named)
    return sorted(set(file_of_tensor.values())), file_of_tensor


def _named_in_config(folder: Path) -> str | None:
    path = folder / CONFIG_FILE
    named = read_json_file(path).get(CONFIG_KEY) if os.path.lexists(path) else None
    if named is None:
        return None
    if not _is_inside(named) or not named.endswith((SUFFIX, INDEX_SUFFIX)):
        need = f"need a {SUFFIX} or {INDEX_SUFFIX} file inside the folder"
        raise CheckpointError(f"{path}: {CONFIG_KEY}: {need}, have {brief(named)}")
    return named


def _only_files(folder: Path) -> list[str]:
    """Where nothing names them: a single file, or as many as their numbers say. Those of other formats do not count."""
    require_folder(folder, f"a folder with {SINGLE_FILE} or {INDEX_FILE} in it")
    with os_errors_named(folder):
        there = sorted(os.listdir(folder))
    names = [name for name in there if name.endswith(SUFFIX) and not name.startswith(OTHER_FORMATS)]
    numbered = [match for name in names if (match := NUMBERED.fullmatch(name))]
    numbers = {(match["stem"], int(match["count"]), int(match["number"])) for match in numbered}
    whole_sets = [{(match["stem"], len(names), index + 1) for index in range(len(names))} for match in numbered[:1]]
    if numbers in whole_sets or (len(names) == 1 and not numbered):
        return names
    raise CheckpointError(f"{folder}: {_not_whole(there, names, how_to_fetch(folder))}")


def _read_files(
    folder: Path, names: list[str], direct: bool, opened: ExitStack
) -> tuple[list[dict[str, TensorEntry]], dict[Path, Shard]]:
    """The tensors of each file by name, and the files by path, which `opened` closes."""
    tensors, files, faults = [], {}, []
    for name in names:
        try:
            shard = Shard(folder / name, direct=direct)
            opened.callback(shard.close)
            tensors.append(read_header(shard))
            files[shard.path] = shard
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        some_are_missing = not all(os.path.lexists(folder / name) for name in names)
        raise CheckpointError(first_faults(faults) + how_to_fetch(folder) * some_are_missing)
    return tensors, files


def _read_index(path: Path) -> dict[str, str]:
    """The shard of each tensor, from an index that may lie about both."""
    weight_map = parse_json(read_small_file(path, INDEX_LIMIT_BYTES), str(path)).get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise CheckpointError(f"{path}: needs a weight_map from tensor names to file names")
    for name, file in weight_map.items():
        if not _is_inside(file):
            fault = f"tensor {brief(name)} is said to lie in {brief(file)}"
            raise CheckpointError(f"{path}: {fault}; need one inside the folder")
    return weight_map


def _is_inside(name: object) -> TypeGuard[str]:
    """Whether it is the path of a file inside a folder, from there.

    A symbolic link of that name may point elsewhere: the Hugging Face cache is made of such links.
    """
    if type(name) is not str or not name.isprintable() or any(character in name for character in "\\:"):
        return False
    return not any(part in ("", ".", "..") for part in name.split("/"))


def _not_whole(there: list[str], names: list[str], fetch: str) -> str:
    """Why what is in a folder is no checkpoint, and what to do."""
    if names:
        need = f"{SINGLE_FILE}, {INDEX_FILE}, or a single file or whole set of numbered ones"
        return f"need {need}; have {', '.join(names)}; fetch what is missing, or put other models' files elsewhere"
    if pickles := [name for name in there if Path(name).suffix in PICKLE_SUFFIXES]:
        fault = "pickle files can run code and are not read"
        return f"has its weights only as {', '.join(pickles)}; {fault}; convert them to safetensors"
    if others := [name for name in there if name.endswith(SUFFIX)]:
        fault = "an adapter or Mistral's own format, which are not read"
        return f"has only {', '.join(others)}, {fault}; fetch {SINGLE_FILE}, or {INDEX_FILE} and its shards"
    return f"has neither {SINGLE_FILE} nor {INDEX_FILE}; it has {', '.join(there) or 'no files'}{fetch}"
