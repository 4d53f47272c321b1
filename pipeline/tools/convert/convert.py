"""Writes a checkpoint anew as compressed-tensors, a block of rows at a time."""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from pipeline.checkpoints.new_folder import check_space, new_folder
from pipeline.checkpoints.shard_layout import SHARD_BYTES, total_bytes
from pipeline.checkpoints.written_formats import WrittenFormat
from pipeline.checkpoints.written_shards import WrittenShards
from pipeline.errors import CheckpointError
from pipeline.formats.matrix import StoredMatrix
from pipeline.formats.tensors import TensorRange, TensorSpec, stored_dtype
from pipeline.tools.convert.conversion import Conversion, NewTensor, plan_conversion

COPIED = (
    *("added_tokens.json", "chat_template*", "generation_config.json", "merges.txt", "special_tokens_map.json"),
    *("tekken.json", "tokenizer*", "vocab*", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)
"""What goes along, beside weights and config.json."""
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Change:
    """What became of all tensors of a kind: bytes, and the squares of the numbers and of their errors, summed up."""

    bytes_before: int = 0
    bytes_after: int = 0
    squares: float = 0.0
    error_squares: float = 0.0

    @property
    def relative_error(self) -> float:
        """The norm of the errors over the norm of the numbers."""
        return math.sqrt(self.error_squares / self.squares) if self.squares else 0.0


@dataclass(slots=True)
class _Counts:
    changes: dict[str, Change] = field(default_factory=lambda: defaultdict(Change))
    done_bytes: int = 0


def convert(
    folder: Path,
    out: Path,
    to: WrittenFormat,
    *,
    keep_head: bool = False,
    shard_bytes: int = SHARD_BYTES,
    begin: Callable[[Conversion], None] = lambda conversion: None,
    progress: Progress = lambda done_bytes, total_bytes: None,
) -> Mapping[str, Change]:
    """Write the folder `out` with the model of `folder`, and return what became of each kind of tensor.

    With `keep_head` its head stays as it is.

    `begin` gets what will be done, before any weight is read; `progress` bytes read and bytes in total after each
    block. `out` appears when it is complete.

    Raises:
        ConfigError: what the format cannot hold, an `out` that is not empty, or a disk that is too full.
        CheckpointError: a folder that cannot be read.
        OSError: a file that cannot be written.
    """
    with new_folder(out) as partial, open_checkpoint(folder, direct=False) as checkpoint:
        conversion = plan_conversion(folder, checkpoint, to, keep_head=keep_head)
        check_space(partial, total_bytes(conversion.written), "another format")
        begin(conversion)
        for pattern in COPIED:
            for path in folder.glob(pattern):
                copied = partial / path.name
                _ = shutil.copytree(path, copied) if path.is_dir() else shutil.copyfile(path, copied)
        (partial / CONFIG_FILE).write_text(json.dumps(conversion.settings, indent=2) + "\n")
        counts, total = _Counts(), sum(one.bytes_before for one in conversion.tensors)
        with WrittenShards(partial, conversion.written, shard_bytes) as shards:
            for tensor in conversion.tensors:
                for done_bytes in _write(tensor, checkpoint, to, shards, counts.changes[tensor.kind]):
                    progress(counts.done_bytes + done_bytes, total)
                counts.done_bytes += tensor.bytes_before
        return counts.changes


def _write(
    tensor: NewTensor, checkpoint: Checkpoint, to: WrittenFormat, shards: WrittenShards, change: Change
) -> Iterator[int]:
    """Write all parts of a tensor, and yield after each block how many bytes of it have been read."""
    change.bytes_before += tensor.bytes_before
    change.bytes_after += tensor.bytes_after
    if tensor.vector is not None:
        shards.write(tensor.spec.name, stored_tensor(tensor.vector, checkpoint))
        yield tensor.bytes_before
        return
    ends = dict.fromkeys(tensor.parts, 0)
    done_rows = 0
    for rows_FD in _decoded(tensor, checkpoint):
        parts = _encoded(tensor, rows_FD, to)
        for spec, part in parts.items():
            ends[spec] = shards.write(spec.name, part, ends[spec])
        if tensor.quantised:
            _compare(tensor, rows_FD, parts, change)
        done_rows += len(rows_FD)
        yield tensor.bytes_before * done_rows // tensor.spec.shape[0]
    for spec, written in tensor.parts.items():
        if spec.is_header:  # the shape of the whole matrix
            shards.write(spec.name, torch.tensor(tensor.spec.shape, dtype=stored_dtype(written.dtype)))


def _encoded(tensor: NewTensor, rows_FD: torch.Tensor, to: WrittenFormat) -> dict[TensorSpec, torch.Tensor]:
    """What these rows are stored as."""
    if not tensor.quantised:
        return {tensor.spec: rows_FD}
    parts = to.encode(rows_FD)
    stem = tensor.spec.name.removesuffix("weight")
    return {spec: parts[spec.name.removeprefix(stem)] for spec in tensor.parts if not spec.is_header}


def _compare(
    tensor: NewTensor, rows_FD: torch.Tensor, parts: Mapping[TensorSpec, torch.Tensor], change: Change
) -> None:
    """Add the errors of rows, as they are read back, to the change of all that is like them."""
    views = {spec.short: part for spec, part in parts.items()}
    decoded_FD = tensor.written_rows(len(rows_FD)).over(views).decoded(torch.float32)
    numbers_FD = rows_FD.float()
    change.squares += float(numbers_FD.square().sum(dtype=torch.float64))
    change.error_squares += float(decoded_FD.sub(numbers_FD).square_().sum(dtype=torch.float64))


def _decoded(tensor: NewTensor, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
    """The rows of a matrix in blocks, [F, D], of which no more is read at once than must be."""
    for source in tensor.sources:
        whole = None if source.row_step is not None else source.over(stored_views(source, checkpoint))
        step = tensor.block_rows(source)
        for first in range(0, source.rows, step):
            last = min(first + step, source.rows)
            if whole is not None:
                yield whole.decoded_rows(first, last, tensor.dtype)
            else:
                rows = source.slice(first, last)
                yield rows.over(stored_views(rows, checkpoint)).decoded(tensor.dtype)


def stored_views(matrix: StoredMatrix, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The parts of a matrix by short name, as `StoredMatrix.over` takes them."""
    return {tensor.short: stored_tensor(tensor, checkpoint) for tensor in matrix.tensors}


def stored_tensor(tensor: TensorRange, checkpoint: Checkpoint) -> torch.Tensor:
    """All of it, read now. Raises CheckpointError where the file does not give all of it any more."""
    content = bytearray(checkpoint.files[tensor.file].read(tensor.start, tensor.length))
    if len(content) < tensor.length:
        need = f"need {tensor.length} bytes at {tensor.start}, have {len(content)}"
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r}: {need}; fetch the file again")
    return torch.frombuffer(content, dtype=stored_dtype(tensor.dtype)).view(tensor.shape)
