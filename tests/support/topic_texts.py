"""Texts that lie on a machine, by topic, to train a small model with: sources, headers, documentation.

A document is a file, or the docstrings of one; a part of each topic is held out, by the name of its file.
"""

import ast
import gzip
import hashlib
import os
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SUFFIXES = {
    "python": ("py", "pyx", "pyi"),
    "c": ("c", "h", "cc", "cpp", "cxx", "hpp", "hh", "cu", "cuh", "inl", "hip"),
    "prose": ("md", "rst", "txt", "METADATA", "LICENSE", "COPYING", "NOTICE", "copyright", "pod"),
    "markup": ("json", "yaml", "yml", "xml", "html", "svg", "css", "toml", "csv", "ipynb"),
    "scripts": ("sh", "cmake", "pl", "pm", "js", "mjs", "ts", "lua", "awk", "tcl", "f90", "td"),
}
MAN = tuple("123456789")
DOCSTRINGS = "prose"
"""The topic of man pages, and of what Python files say of themselves."""
FEWEST_BYTES, MOST_BYTES = 400, 1_000_000
LONGEST_BYTES = 60_000
"""A longer file gives its beginning only: tables would crowd out all else."""
HELD_OUT = 32
"""One file of so many."""


def machine_roots() -> list[Path]:
    """Folders in which systems and Python keep files."""
    paths = sysconfig.get_paths()
    found = {Path(paths["stdlib"]).resolve(), Path(paths["purelib"]).resolve(), Path("/usr"), Path("/opt")}
    return sorted(
        one for one in found if one.is_dir() and not any(one.is_relative_to(other) for other in found - {one})
    )


def topic_files(roots: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each topic below the roots, each once, sorted by the hash of their names."""
    topics = {suffix: topic for topic, suffixes in SUFFIXES.items() for suffix in suffixes}
    files: dict[str, list[Path]] = {topic: [] for topic in SUFFIXES}
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                stem, _, suffix = name.removesuffix(".gz").rpartition(".")
                topic = topics.get(suffix)
                if topic is None and name.endswith(".gz") and stem and suffix in MAN:
                    topic = DOCSTRINGS
                if topic is not None:
                    files[topic].append(Path(folder, name))
    return {topic: sorted(each, key=_hashed) for topic, each in files.items()}


def topic_documents(
    files: dict[str, list[Path]], most_bytes: int, workers: int
) -> Iterator[tuple[str, bool, list[str]]]:
    """By topic: training texts, then held-out ones, as (topic, held out, texts); no two texts begin alike."""
    with ProcessPoolExecutor(workers) as pool:
        read = {topic: _read_all(pool, each, most_bytes) for topic, each in files.items()}
        docstrings = _read_all(pool, files["python"], most_bytes, docstrings=True)
    for topic, documents in read.items():
        seen: set[str] = set()
        parts: dict[bool, list[str]] = {False: [], True: []}
        for held_out, text in documents + (docstrings if topic == DOCSTRINGS else []):
            if (beginning := text[:FEWEST_BYTES]) not in seen:
                seen.add(beginning)
                parts[held_out].append(text)
        for held_out, texts in parts.items():
            yield topic, held_out, texts


def _read_all(
    pool: ProcessPoolExecutor, files: Sequence[Path], most_bytes: int, *, docstrings: bool = False
) -> list[tuple[bool, str]]:
    documents, nbytes, size = [], 0, 256
    for begin in range(0, len(files), size * 16):
        parts = [files[at : at + size] for at in range(begin, min(begin + size * 16, len(files)), size)]
        for texts in pool.map(_docstrings if docstrings else _texts, parts):
            documents += texts
            nbytes += sum(len(text) for _, text in texts)
        if nbytes > most_bytes:
            break
    return documents


def _texts(files: Sequence[Path]) -> list[tuple[bool, str]]:
    texts = [(path, _text(path)) for path in files]
    return [(_held_out(path), text) for path, text in texts if text is not None]


def _docstrings(files: Sequence[Path]) -> list[tuple[bool, str]]:
    found = []
    for path in files:
        text = _text(path) if path.suffix == ".py" else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nodes = [] if text is None else list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        said = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        joined = "\n\n".join(one for one in said if one and "\n" in one)
        if len(joined) >= FEWEST_BYTES:
            found.append((_held_out(path), joined))
    return found


def _text(path: Path) -> str | None:
    """None for what is no text, is a link, or is too small or too large."""
    try:
        if path.is_symlink() or not FEWEST_BYTES <= path.stat().st_size <= MOST_BYTES:
            return None
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data[:LONGEST_BYTES].decode("utf-8", "strict" if len(data) <= LONGEST_BYTES else "ignore")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error):
        return None
    return None if "\0" in text or len(text) < FEWEST_BYTES else text


def _held_out(path: Path) -> bool:
    return int(_hashed(path), 16) % HELD_OUT == 0


def _hashed(path: Path) -> str:
    return hashlib.blake2b(path.as_posix().encode(), digest_size=8).hexdigest()
