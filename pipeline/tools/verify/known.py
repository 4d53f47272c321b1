"""Collects known digests of a checkpoint's files: from where they were fetched, their headers, a file of sums."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints.header import LENGTH_BYTES, parse_json, read_header
from pipeline.checkpoints.shard import Shard
from pipeline.errors import CheckpointError, ConfigError
from pipeline.system.small_files import CONFIG_LIMIT_BYTES, read_small_file
from pipeline.system.written_files import writing
from pipeline.tools.verify.digests import DATA, GIT, PIECE_BYTES, SHA256, Digests

SUMS_FILE = "penstock.sha256"
SUMS_LIMIT_BYTES = 64 << 20
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
PIECES_LINE = re.compile(rf"# {PIECE_BYTES} bytes each, xxh3: (.+?): ((?:[0-9a-f]{{16}} ?)*)")
"""A comment for `sha256sum -c`."""
HEADER_KEYS = ("modelspec.hash_sha256", "sshs_model_hash")
HUB_ALGORITHMS = {64: SHA256, 40: GIT}


@dataclass(frozen=True, slots=True)
class Known:
    """One digest that a file must have, and the source of that digest."""

    algorithm: str
    digest: str
    source: str


@dataclass(frozen=True, slots=True)
class SumsFile:
    """The contents of a file of sums, by file name."""

    whole: Mapping[str, str]
    pieces: Mapping[str, tuple[str, ...]]


def known_digests(folder: Path, name: str, shard: Shard, sums: SumsFile, source: str) -> tuple[list[Known], int]:
    """Return all known digests of a file, and where the data behind its header begin. Raises CheckpointError."""
    known = [Known(SHA256, sums.whole[name], source)] if name in sums.whole else []
    known += _of_the_hub(folder, name)
    if shard.path.suffix != ".safetensors":
        return known, 0
    read_header(shard)  # raises what is wrong with it
    data_start = LENGTH_BYTES + int.from_bytes(shard.read(0, LENGTH_BYTES), "little")
    header = parse_json(shard.read(0, data_start)[LENGTH_BYTES:], f"{shard.path}: header")
    metadata = header.get("__metadata__") or {}
    said = {key: metadata[key].removeprefix("0x").lower() for key in HEADER_KEYS if key in metadata}
    known += [Known(DATA, digest, f"its own header, {key}") for key, digest in said.items() if len(digest) == 64]
    return known, data_start


def read_sums(path: Path) -> SumsFile:
    """Read a file as `sha256sum` writes it; nothing where there is none. Raises CheckpointError."""
    whole: dict[str, str] = {}
    pieces: dict[str, tuple[str, ...]] = {}
    if not os.path.lexists(path):
        return SumsFile(whole, pieces)
    for number, line in enumerate(read_small_file(path, SUMS_LIMIT_BYTES).decode(errors="replace").splitlines(), 1):
        if (found := SUM_LINE.fullmatch(line)) is not None:
            name = found[2].removeprefix("./")
            if {"", ".", ".."} & {*name.split("/")}:
                need = "need a file inside the checkpoint's folder"
                raise CheckpointError(f"{path}: line {number}: {need}, have {name!r}")
            whole[name] = found[1]
        elif (found := PIECES_LINE.fullmatch(line)) is not None:
            pieces[found[1]] = tuple(found[2].split())
        elif line.strip() and not line.startswith("#"):
            raise CheckpointError(f"{path}: line {number} is no line of sha256sum; write it anew, or name another file")
    return SumsFile(whole, pieces)


def write_sums(path: Path, folder: Path, found: Mapping[str, Digests]) -> None:
    """Write what `read_sums` and `sha256sum -c` read, by renaming a whole file. Raises ConfigError."""
    lines = [f"# Of {folder.name}, by penstock verify --write. Compare: penstock verify, or there: sha256sum -c"]
    for name, digests in sorted(found.items()):
        lines += [f"{digests.whole[SHA256]}  {name}"]
        lines += [f"# {PIECE_BYTES} bytes each, xxh3: {name}: {' '.join(digests.pieces)}"]
    try:
        with writing(path) as file:
            file.write(("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another file with --sums") from error


def _of_the_hub(folder: Path, name: str) -> list[Known]:
    """Read what huggingface_hub notes: its cache names a file by its digest, a local folder notes each download."""
    path = folder / name
    blob = path.resolve()
    if blob.parent.name == "blobs" and blob != path:
        return _by_name(blob.name, "the Hugging Face cache")
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    if not os.path.lexists(note):
        return []
    lines = read_small_file(note, CONFIG_LIMIT_BYTES).decode(errors="replace").split()
    try:
        changed_since = path.stat().st_mtime - 1 > float(lines[2])
    except (IndexError, ValueError):
        return []
    return [] if changed_since else _by_name(lines[1], "the note of its download")


def _by_name(name: str, source: str) -> list[Known]:
    is_digest = re.fullmatch(r"[0-9a-f]+", name) and len(name) in HUB_ALGORITHMS
    return [Known(HUB_ALGORITHMS[len(name)], name, source)] if is_digest else []
