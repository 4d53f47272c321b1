"""Weight files that are written piece by piece, in any order: safetensors' own writer needs all of a file in memory."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Self

import torch

from pipeline.checkpoints.header import TensorEntry
from pipeline.checkpoints.shard_layout import (
    SHARD_BYTES,
    Tensor,
    Tensors,
    file_entries,
    shard_header,
    shards,
    total_bytes,
    write_index,
)
from pipeline.formats.tensors import ITEM_BITS


class WrittenShards:
    """The files of these tensors in a folder, which are whole when the `with` ends."""

    def __init__(self, folder: Path, tensors: Tensors, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._total = folder, total_bytes(tensors)
        self._held = {folder / name: _ordered(held) for name, held in shards(tensors, shard_bytes).items()}
        self._entries: dict[str, TensorEntry] = {}
        self._files: dict[Path, BinaryIO] = {}
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            for path, held in self._held.items():
                self._files[path] = opened.enter_context(path.open("wb"))
                self._files[path].write(shard_header(held))
                self._entries.update(file_entries(path, held))
            self._opened = opened.pop_all()
        return self

    def write(self, name: str, piece: torch.Tensor, at: int = 0) -> int:
        """Write a piece of a tensor from byte `at` of it on, and return where the piece ends. Raises OSError."""
        entry, content = self._entries[name], piece.contiguous().flatten().view(torch.uint8)
        file = self._files[entry.file]
        file.seek(entry.start + at)
        file.write(content.numpy().data)
        return at + content.nbytes

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._opened:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        if len(self._files) > 1:
            write_index(self._folder, self._total, {name: one.file.name for name, one in self._entries.items()})


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The widest items first, as safetensors does it, so that each tensor begins at a multiple of its items."""
    names = sorted(tensors, key=lambda name: (-ITEM_BITS[tensors[name].dtype], name))
    return {name: tensors[name] for name in names}
