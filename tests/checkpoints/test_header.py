import copy
import json
import os
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save_file
from support.safetensors_files import field, packed

from pipeline.checkpoints.header import HEADER_LIMIT_BYTES, TENSOR_LIMIT, TensorEntry, read_header
from pipeline.checkpoints.shard import Shard
from pipeline.errors import CheckpointError
from pipeline.formats.tensors import ITEM_BITS

FOUR = field("F32", [1], 0, 4)
NAMED = b'{"a":{"dtype":"F32","shape":%s,"data_offsets":%s}}'


def header_of(path: Path) -> dict[str, TensorEntry]:
    with closing(Shard(path)) as shard:
        return read_header(shard)


def test_a_real_file_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(7).bfloat16(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    raw = path.read_bytes()
    entries = header_of(path)
    for name, reference in deserialize(raw):
        entry = entries.pop(name)
        assert (entry.file, entry.dtype, list(entry.shape)) == (path, reference["dtype"], reference["shape"])
        assert raw[entry.start :][: entry.length] == reference["data"]
    assert entries == {}


BAD = {
    "no_length": (b"\x01\x02", "truncated: .* needs 8 bytes"),
    "empty_file": (b"", "truncated: .* needs 8 bytes, the file has 0"),
    "git_lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "header_of_17_MiB": ((17 << 20).to_bytes(8, "little"), f"header of {17 << 20} bytes.*{HEADER_LIMIT_BYTES}"),
    "header_of_2_to_64": (b"\xff" * 8, "header of 18446744073709551615 bytes"),
    "header_beyond_file": ((100).to_bytes(8, "little") + b"{}", "needs 108 bytes, the file has 10"),
    "not_json": (packed(b"{nope}"), "broken JSON"),
    "not_an_object": (packed(b"[]"), "does not begin with"),
    "not_utf_8": (packed(b'{"\xff":1}'), "broken JSON"),
    "utf_16": (packed('{"a":1}'.encode("utf-16-le")), "broken JSON"),
    "rest_in_header": (packed(b"{}{}"), "broken JSON"),
    "zero_byte_after_header": (packed(b"{}\0"), "broken JSON"),
    "lone_surrogate": (packed(b'{"\\ud800":%s}' % json.dumps(FOUR).encode(), bytes(4)), "surrogates"),
    "duplicate_key": (packed(b'{"a":%s,"a":%s}' % ((json.dumps(FOUR).encode(),) * 2), bytes(4)), "duplicate key 'a'"),
    "duplicate_field": (packed(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "duplicate key 'dtype'"),
    "nan": (packed(NAMED % (b"[NaN]", b"[0,4]"), bytes(4)), "NaN is not JSON"),
    "infinity": (packed(NAMED % (b"[-Infinity]", b"[0,4]"), bytes(4)), "Infinity is not JSON"),
    "depth": (packed(b'{"a":' + b"[" * 500_000), "nested too deeply"),
    "field_missing": (packed({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "tensor 'a': needs exactly the fields"),
    "field_unknown": (packed({"a": {**FOUR, "x": 1}}, bytes(4)), "tensor 'a': needs exactly the fields"),
    "entry_is_a_list": (packed({"a": ["F32", [1], [0, 4]]}, bytes(4)), "tensor 'a': needs exactly"),
    "dtype_unknown": (packed({"a": field("F33", [1], 0, 4)}, bytes(4)), "tensor 'a': unknown dtype 'F33'"),
    "dtype_is_a_list": (packed({"a": {**FOUR, "dtype": ["F32"]}}, bytes(4)), r"unknown dtype \['F32'\]"),
    "shape_negative": (packed({"a": field("F32", [-1], 0, 4)}, bytes(4)), r"shape \[-1\] is not a list of"),
    "shape_bool": (packed({"a": {**FOUR, "shape": [True]}}, bytes(4)), r"shape \[True\] is not"),
    "shape_float": (packed({"a": {**FOUR, "shape": [1.0]}}, bytes(4)), r"shape \[1.0\] is not"),
    "shape_minus_zero": (packed(NAMED % (b"[-0]", b"[0,0]")), "-0 is not an integer"),
    "shape_text": (packed({"a": {**FOUR, "shape": "1"}}, bytes(4)), "shape '1' is not"),
    "shape_2_to_64": (packed({"a": field("F32", [0, 2**64], 0, 0)}), "is not a list of"),
    "shape_overflow": (packed({"a": field("F32", [2**31, 2**31, 4], 0, 4)}, bytes(4)), "overflows"),
    "shape_overflow_to_zero": (packed({"a": field("F32", [2**62, 4, 0], 0, 0)}), "overflows"),
    "digits": (packed(NAMED % (b"[%s]" % (b"9" * 5000), b"[0,4]"), bytes(4)), "broken JSON"),
    "size_too_small": (packed({"a": field("F32", [2], 0, 4)}, bytes(4)), "'a': .* needs 8 bytes, .* have 4"),
    "half_a_byte": (packed({"a": field("F4", [1], 0, 1)}, bytes(1)), "needs 4 bits"),
    "offsets_reversed": (packed({"a": field("F32", [1], 4, 0)}, bytes(4)), r"data_offsets \[4, 0\]"),
    "offsets_of_three": (packed({"a": {**FOUR, "data_offsets": [0, 4, 4]}}, bytes(4)), "data_offsets"),
    "overlap": (packed({"a": FOUR, "b": field("F32", [1], 2, 6)}, bytes(6)), "tensor 'b': overlaps"),
    "same_bytes": (packed({"a": FOUR, "b": FOUR}, bytes(4)), "overlaps"),
    "hole": (packed({"a": FOUR, "b": field("F32", [1], 8, 12)}, bytes(12)), "tensor 'b': leaves a hole"),
    "hole_at_the_start": (packed({"a": field("F32", [1], 4, 8)}, bytes(8)), "tensor 'a': leaves a hole"),
    "beyond_the_file": (packed({"a": field("F32", [100], 0, 400)}, bytes(4)), r"truncated: .* declares \d+ bytes"),
    "rest_in_file": (packed({"a": FOUR}, bytes(5)), "1 bytes after the last tensor"),
    "metadata_of_numbers": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata_is_a_list": (packed({"__metadata__": ["a"]}), "__metadata__"),
    "metadata_surrogate": (packed(b'{"__metadata__":{"a":"\\udfff"}}'), "__metadata__"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    raw, message = BAD[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        header_of(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "raw",
    [
        b"{" + b",".join(b'"%d":[]' % index for index in range(3 * TENSOR_LIMIT + 3)) + b"}",
        b'{"a":' + b"[" * (HEADER_LIMIT_BYTES - 8),
        NAMED % (b"[" + b"9223372036854775807," * 100_000 + b"0]", b"[0,4]"),
        b'{"%s":{}}' % (b"x" * 1_000_000),
    ],
    ids=["tensors", "depth", "dimensions", "name"],
)
def test_a_bomb_is_refused_quickly_and_briefly(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(raw))
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        header_of(path)
    assert time.process_time() - started < 1.0
    assert len(str(caught.value)) < 1000


def test_what_is_not_a_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: is not a regular file"):
            header_of(path)
    with pytest.raises(CheckpointError, match="nothing: is missing"):
        header_of(tmp_path / "nothing")


NAMES = st.text(max_size=4) | st.sampled_from(["a", "b", "__metadata__"])
ODD = st.one_of(
    st.sampled_from([None, True, 1.0, -1, 0, 2**31, 2**63, 2**64, "F32", [], {}, [0], [0, 4]]).map(copy.deepcopy),
    st.integers(0, 12),
)


@st.composite
def sound_files(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(NAMES.filter("__metadata__".__ne__), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(ITEM_BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        bits = ITEM_BITS[dtype]
        for size in shape:
            bits *= size
        if bits % 8:
            shape, bits = [*shape, 8], bits * 8
        header[name] = field(dtype, shape, end, end + bits // 8)
        end += bits // 8
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    return header, draw(st.binary(min_size=end, max_size=end))


@st.composite
def bent_files(draw: st.DrawFn) -> bytes:
    """A sound file with a few things changed, in the values or in the bytes."""
    header, data = draw(sound_files())
    for name in draw(st.lists(st.sampled_from(sorted(header)), max_size=2) if header else st.just([])):
        where = draw(st.sampled_from(["entry", "dtype", "shape", "data_offsets", "dimension", "offset"]))
        entry = header[name]
        if where == "entry" or not isinstance(entry, dict) or "shape" not in entry:
            header[name] = draw(ODD)
        elif where in ("dimension", "offset"):
            values = entry["shape" if where == "dimension" else "data_offsets"]
            if isinstance(values, list) and values:
                values[draw(st.integers(0, len(values) - 1))] = draw(ODD)
        else:
            entry[where] = draw(ODD)
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=2))
    raw = bytearray(packed(json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"), data))
    for _ in range(draw(st.integers(0, 2))):
        raw[draw(st.integers(8, len(raw) - 1))] = draw(
            st.sampled_from(b'0123-.e"{}[]:, \\u\x00\xff') | st.integers(0, 255)
        )
    return bytes(raw)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("header") / "x.safetensors"


@settings(deadline=None)
@given(file=sound_files())
def test_sound_files_are_accepted(file: tuple[dict[str, Any], bytes], scratch: Path) -> None:
    scratch.write_bytes(packed(*file))
    assert header_of(scratch).keys() == file[0].keys() - {"__metadata__"}


@settings(deadline=None)
@given(raw=bent_files())
def test_what_is_accepted_the_library_accepts_and_reads_alike(raw: bytes, scratch: Path) -> None:
    scratch.write_bytes(raw)
    try:
        entries = header_of(scratch)
    except CheckpointError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert str(scratch) in refused
        return
    try:
        reference = dict(deserialize(raw))
    except SafetensorError as error:
        pytest.fail(f"accepted what the library refuses: {error}")
    assert entries.keys() == reference.keys()
    for name, entry in entries.items():
        assert (entry.dtype, list(entry.shape)) == (reference[name]["dtype"], reference[name]["shape"])
        assert raw[entry.start :][: entry.length] == reference[name]["data"]
