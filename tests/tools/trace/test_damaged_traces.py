"""What is no trace of ours is refused, by name and fault."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.tools.trace.perfetto import read_trace, write_trace
from pipeline.tools.trace.recording import Recording

Record = Callable[..., Recording]


def trace_text(tmp_path: Path, record: Record) -> str:
    path = tmp_path / "good.json"
    write_trace(path, record(passes=1))
    return path.read_text()


def other(**changes: Any) -> str:
    event = {"ph": "X", "pid": 1, "tid": 2, "ts": 1, "dur": 2, "cat": "disk_reader", "name": "L0 attn"}
    args = {"what": "work", "layer": 0, "group": "attn", "seq": 0, "slot": 0, "part": 0}
    head = {"penstock": {"format": 1, "configuration": {}}}
    return json.dumps({"otherData": head, "traceEvents": [event | {"args": args}]} | changes)


def configured(**configuration: Any) -> bytes:
    return other(otherData={"penstock": {"format": 1, "configuration": configuration}}).encode()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "not a trace: the file is empty"),
        (b"hello", "not a trace: it is not JSON text"),
        (b"\xff\xfe\x00", "not a trace: it is not JSON text"),
        (b"[" * 100_000, "not a trace: it is not JSON text"),
        (b'{"a": 1,, "b": 2}', "not a trace: line 1 is not JSON"),
        (b"17", "need a JSON object"),
        (b'[{"ph": "X", "pid": 1}]', "not a trace of penstock: an event lacks what ours have"),
        (b'{"traceEvents": {}}', 'with a list "traceEvents"'),
        (b'{"traceEvents": []}', "not a trace of penstock: another tool wrote it"),
        (other(otherData={"penstock": {"format": 1}}).encode(), "another tool wrote it"),
        (other(otherData={"penstock": {"format": 9, "configuration": {}}}).encode(), "need format 1, have 9"),
        (other(traceEvents=[{"ph": "X", "pid": 1, "ts": 1, "args": {}}]).encode(), "an event lacks what ours have"),
        (other().replace('"ts": 1', '"ts": NaN').encode(), "an event lacks what ours have"),
        (other().replace('"ts": 1', '"ts": Infinity').encode(), "an event lacks what ours have"),
        (other(traceEvents=[{"ph": "C", "pid": 1, "ts": 1, "name": "queue", "args": 3}]).encode(), "an event lacks"),
        (other().replace('"ts": 1', '"ts": "abc"').encode(), "need a number of microseconds, have 'abc'"),
        (other().replace('"ts": 1', '"ts": "5"').encode(), "need a number of microseconds, have '5'"),
        (other().replace('"dur": 2', '"dur": null').encode(), "need a number of microseconds, have None"),
        (other().replace('"ts": 1', f'"ts": "{"x" * 9_000}"').encode(), "need a number of microseconds, have 'xxx"),
        (other().replace('"layer": 0', f'"layer": "{"x" * 9_000}"').encode(), "an event lacks what ours have"),
        (
            other(otherData={"penstock": {"format": "9" * 9_000, "configuration": {}}}).encode(),
            "need format 1, have '9",
        ),
        (configured(actors=5), 'need a list of names as the configuration\'s "actors", have 5'),
        (configured(actors="disk_reader"), "have 'disk_reader'"),
        (configured(actors=None), "have None"),
        (configured(actors=["disk_reader", ["x"] * 9_000]), "have ['disk_reader', ['x', "),
    ],
)
def test_what_is_not_a_trace_is_refused_by_name_and_fault(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert fault in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 260, "short, however long what is wrong"


def test_a_smallest_trace_is_one(tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(other())
    (span,) = read_trace(tmp_path / "small.json").spans
    assert (span.actor, span.started, span.ended) == ("disk_reader", 1e-6, pytest.approx(3e-6))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_trace_is_refused(tmp_path: Path, record: Record, share: float) -> None:
    text = trace_text(tmp_path, record)
    path = tmp_path / "cut.json"
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(ConfigError, match="truncated: the text ends in the middle"):
        read_trace(path)
    packed = gzip.compress(text.encode())
    path = tmp_path / "cut.json.gz"
    path.write_bytes(packed[: int(len(packed) * share)])
    with pytest.raises(ConfigError, match="truncated: the compressed data end too early"):
        read_trace(path)


@pytest.mark.parametrize("name", ["missing.json", "missing.json.gz", "plain.gz", "folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain.gz").write_text("{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"{name}: cannot be read: "):
        read_trace(tmp_path / name)


def test_damaged_compressed_data_are_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(other().encode()))
    packed[15:25] = b"\xff" * 10
    (tmp_path / "bad.gz").write_bytes(packed)
    with pytest.raises(ConfigError, match=r"bad\.gz: not a trace: the compressed data are damaged"):
        read_trace(tmp_path / "bad.gz")


def test_a_trace_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, record: Record) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_trace(tmp_path / "nowhere" / "trace.json", record(passes=1))
    path = tmp_path / "trace.json"
    write_trace(path, record(passes=1))
    before = path.read_bytes()
    with path.open("rb") as reader:
        write_trace(path, Recording((), ()))
        assert reader.read() == before, "who reads the old file still reads all of it"
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_trace(path, Recording((), (), {"setting": object()}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
