"""The training text: the sources of the Python standard library, split by file."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 400_000  # only generated tables are larger
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages"}
# Build records of one machine: full of its paths, and not sources.
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
HELD_OUT_PERCENT = 3
VALIDATION_PERCENT = 1


@dataclass(frozen=True)
class SourceFile:
    path: str  # relative to the data folder, with forward slashes
    text: str

    @property
    def byte_count(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """Training files, validation files (watched while training) and held-out files (measured once, at the end)."""

    training: list[SourceFile]
    validation: list[SourceFile]
    held_out: list[SourceFile]


def collect(data_folder: Path) -> Corpus:
    """Read the ``*.py`` files under ``data_folder``; of identical files only the first by path is kept.

    A file's part follows from the SHA-256 of its relative path alone, so it is the same on every machine.
    """
    parts: dict[str, list[SourceFile]] = {"training": [], "validation": [], "held_out": []}
    seen: set[bytes] = set()
    for path in sorted(data_folder.rglob("*.py"), key=lambda path: path.relative_to(data_folder).as_posix()):
        relative = path.relative_to(data_folder)
        if SKIPPED_FOLDERS & set(relative.parts) or any(part.startswith(SKIPPED_PREFIXES) for part in relative.parts):
            continue
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if not content or len(content) > MAX_FILE_BYTES or digest in seen:
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        seen.add(digest)
        parts[part_of(relative.as_posix())].append(SourceFile(relative.as_posix(), text))
    if not all(parts.values()):
        raise SystemExit(f"too few Python files under {data_folder}: --data needs a whole standard library")
    return Corpus(**parts)


def part_of(path: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % 100
    if bucket < HELD_OUT_PERCENT:
        return "held_out"
    return "validation" if bucket < HELD_OUT_PERCENT + VALIDATION_PERCENT else "training"


@dataclass(frozen=True)
class CompressorRates:
    """Bits per byte over some files: as one stream of them all, and with each file compressed on its own."""

    gzip_together: float
    gzip_alone: float
    xz_together: float
    xz_alone: float


def measure_compressors(files: list[SourceFile]) -> CompressorRates:
    contents = [file.text.encode() for file in files]
    together = b"".join(contents)

    def gzip_bytes(content: bytes) -> int:
        return len(gzip.compress(content, 9, mtime=0))

    def xz_bytes(content: bytes) -> int:
        return len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))

    bits = 8 / len(together)
    return CompressorRates(
        gzip_together=bits * gzip_bytes(together),
        gzip_alone=bits * sum(map(gzip_bytes, contents)),
        xz_together=bits * xz_bytes(together),
        xz_alone=bits * sum(map(xz_bytes, contents)),
    )
