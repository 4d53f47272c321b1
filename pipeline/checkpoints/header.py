"""The header of a safetensors file, read from files that may be damaged or hostile.

A file is `length (8 bytes, little endian) | JSON of that length | data`. What is accepted here the safetensors library
accepts too; this parser is stricter where a lie could hide (duplicate keys, unknown fields, sizes).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoints.shard import Shard
from pipeline.errors import CheckpointError
from pipeline.formats.tensors import ITEM_BITS
from pipeline.system.small_files import parse_object

HEADER_LIMIT_BYTES = 16 << 20
TENSOR_LIMIT = 200_000
LENGTH_BYTES = 8
_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of one file: `dtype` as the file spells it, `start` in bytes from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


def brief(value: object) -> str:
    """`repr(value)`, cut, so that a hostile name cannot make a message of megabytes."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object in UTF-8 without duplicate keys, NaN or surrogates. Raises CheckpointError, naming `what`."""
    return parse_object(raw, what, parse_constant=_no_constant, parse_int=_plain_int)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _plain_int(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is not an integer")
    return int(digits)


def read_header(shard: Shard) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name, in file order; reads the header only.

    Raises:
        CheckpointError: naming the file, the tensor, need and have, when the header is not sound: at most 16 MiB and
            200,000 tensors; known dtypes; shapes that fit their bytes; data that covers the file without overlap, hole
            or rest.
    """
    path, size = shard.path, shard.size
    head = shard.read(0, LENGTH_BYTES)
    if head.startswith(b"version "):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not weights; fetch the file with `git lfs pull`")
    length = int.from_bytes(head, "little")
    if len(head) < LENGTH_BYTES:
        raise _truncated(path, f"the header's length needs {LENGTH_BYTES} bytes", size)
    if length > HEADER_LIMIT_BYTES:
        raise CheckpointError(f"{path}: declares a header of {length} bytes; the most allowed is {HEADER_LIMIT_BYTES}")
    data_start = LENGTH_BYTES + length
    raw = shard.read(LENGTH_BYTES, length)
    if len(raw) < length:
        raise _truncated(path, f"the header needs {data_start} bytes", size)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: not a safetensors file: the header does not begin with '{{'")
    if raw.count(b"{") + raw.count(b"[") > 3 * TENSOR_LIMIT + 2:  # before any of them becomes a Python object
        raise CheckpointError(f"{path}: the header declares more than {TENSOR_LIMIT} tensors")

    fields_by_name = parse_json(raw, f"{path}: header")
    _check_metadata(path, fields_by_name.pop("__metadata__", None))
    if len(fields_by_name) > TENSOR_LIMIT:
        raise CheckpointError(f"{path}: the header declares {len(fields_by_name)} tensors, more than {TENSOR_LIMIT}")
    shared: dict[object, Any] = {}
    entries = [(name, _entry(path, data_start, name, fields, shared)) for name, fields in fields_by_name.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].length))
    _check_cover(path, data_start, size, entries)
    return dict(entries)


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to text")
    try:
        "".join(metadata.values()).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path}: __metadata__ holds text that is not Unicode") from error


def _entry(path: Path, data_start: int, name: str, fields: object, shared: dict[object, Any]) -> TensorEntry:
    """Equal dtypes and shapes are `shared` objects: there may be 100,000 of them."""
    what = f"{path}: tensor {brief(name)}"
    if type(fields) is not dict or fields.keys() != _FIELDS:
        raise CheckpointError(f"{what}: needs exactly the fields dtype, shape and data_offsets, has {brief(fields)}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if type(dtype) is not str or dtype not in ITEM_BITS:
        raise CheckpointError(f"{what}: unknown dtype {brief(dtype)}")
    if not _are_sizes(shape):
        raise CheckpointError(f"{what}: shape {brief(shape)} is not a list of non-negative integers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{what}: data_offsets {brief(offsets)} are not [begin, end]")
    bits = ITEM_BITS[dtype]
    for size in shape:
        bits *= size
        if bits >= _LARGEST:  # checked on the way: the product of a hostile shape would take hours
            raise CheckpointError(f"{what}: shape {brief(shape)} of {dtype} overflows")
    length = offsets[1] - offsets[0]
    if bits != 8 * length:
        need = f"{bits // 8} bytes" if bits % 8 == 0 else f"{bits} bits"
        raise CheckpointError(f"{what}: shape {brief(shape)} of {dtype} needs {need}, data_offsets have {length} bytes")
    shape, start = tuple(shape), data_start + offsets[0]
    return TensorEntry(path, shared.setdefault(dtype, dtype), shared.setdefault(shape, shape), start, length)


def _are_sizes(value: object) -> bool:
    return type(value) is list and all(type(size) is int and 0 <= size < _LARGEST for size in value)


def _check_cover(path: Path, data_start: int, size: int, entries: list[tuple[str, TensorEntry]]) -> None:
    position = data_start
    for name, entry in entries:
        if entry.start != position:
            fault = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            have = f"begins at byte {entry.start}, must begin at {position}"
            raise CheckpointError(f"{path}: tensor {brief(name)}: {fault}: {have}")
        position += entry.length
    if size < position:
        raise _truncated(path, f"the header declares {position} bytes", size)
    if size > position:
        raise CheckpointError(f"{path}: {size - position} bytes after the last tensor: need {position}, have {size}")


def _truncated(path: Path, need: str, size: int) -> CheckpointError:
    return CheckpointError(f"{path}: truncated: {need}, the file has {size}; fetch it again")
