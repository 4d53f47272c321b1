"""Traces as files: what a viewer finds in them, and what comes back."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core.trace import Count, Span
from pipeline.tools.trace.perfetto import _events, read_trace, write_trace
from pipeline.tools.trace.recording import Recording

Record = Callable[..., Recording]
ACTORS = ("disk_reader", "gpu_uploader", "compute_scheduler", "checksum")


def events(recording: Recording, phase: str) -> list[dict[str, Any]]:
    """What a viewer reads from the file."""
    return [event for event in json.loads(json.dumps(list(_events(recording)))) if event["ph"] == phase]


def track_names(recording: Recording) -> dict[int, str]:
    return {one["tid"]: one["args"]["name"] for one in events(recording, "M") if one["name"] == "thread_name"}


def spans_of(draw: st.DrawFn) -> Span:
    started = draw(st.integers(0, 3_000)) * draw(st.sampled_from([1e-9, 1.3e-9, 1e-3, 0.7]))
    length = draw(st.integers(1, 3_000)) * draw(st.sampled_from([1e-9, 1e-3, 0.3]))
    return Span(
        draw(st.sampled_from(ACTORS)),
        draw(st.sampled_from(["work", "work", "slot"])),
        draw(st.integers(-1, 3)),
        draw(st.sampled_from(["attn", "ffn", "head.0"])),
        draw(st.integers(0, 4)),
        5e4 + started,
        5e4 + started + length,
        draw(st.integers(-1, 2)),
        draw(st.integers(0, 1)),
    )


SPANS = st.lists(st.composite(spans_of)(), max_size=30)


@given(SPANS)
def test_slices_of_one_track_never_overlap_for_readers_who_cut_and_for_readers_who_round(spans: list[Span]) -> None:
    for nanoseconds in (lambda microseconds: int(microseconds * 1000), lambda microseconds: round(microseconds * 1000)):
        tracks = defaultdict(list)
        for one in events(Recording(tuple(spans), ()), "X"):
            started = nanoseconds(one["ts"])
            tracks[one["tid"]].append((started, started + nanoseconds(one["dur"])))
        for slices in tracks.values():
            assert all(before[1] <= after[0] for before, after in pairwise(sorted(slices)))


@given(SPANS)
def test_every_span_is_one_slice_on_a_track_of_its_actor(spans: list[Span]) -> None:
    recording = Recording(tuple(spans), ())
    names = track_names(recording)
    for span, one in zip(spans, events(recording, "X"), strict=True):
        assert names[one["tid"]].startswith(span.actor)
        assert (" waits" in names[one["tid"]]) == (span.what == "slot")
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
@pytest.mark.parametrize("policy", ["backpressure", "stage3", "history1"])
def test_what_was_written_comes_back_from_zero_on_to_the_nanosecond(
    tmp_path: Path, record: Record, name: str, policy: str
) -> None:
    recording = record(policy, attn_disk=0.0712345678, ffn_disk=0.1, kv_seconds=0.01, check_seconds=0.003)
    later = Recording(
        tuple(_moved(span, 1234.5) for span in recording.spans),
        tuple(Count(count.counter, count.at + 1234.5, count.value) for count in recording.counts),
        recording.configuration,
    )
    write_trace(tmp_path / name, later)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert name.endswith(".gz") == ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b")
    back = read_trace(tmp_path / name)
    assert back.configuration == recording.configuration
    assert len(back.spans) == len(recording.spans) > 50
    for got, put in zip(back.spans, recording.spans, strict=True):
        assert _moved(got, -got.started) == _moved(put, -put.started, got.ended - got.started)
        assert (got.started, got.ended) == (pytest.approx(put.started, abs=2e-9), pytest.approx(put.ended, abs=2e-9))
    assert [(count.counter, count.value) for count in back.counts] == [
        (count.counter, count.value) for count in recording.counts
    ]
    assert [count.at for count in back.counts] == pytest.approx([count.at for count in recording.counts], abs=2e-9)


def test_the_same_recording_gives_the_same_bytes_whatever_the_name_and_the_time(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("json", "json.gz"):
        written = []
        for name, now in (("one", 1e9), ("another", 1.5e9)):
            monkeypatch.setattr("time.time", lambda now=now: now)
            write_trace(tmp_path / f"{name}.{suffix}", record(passes=1))
            written.append((tmp_path / f"{name}.{suffix}").read_bytes())
        assert written[0] == written[1]
        text = gzip.decompress(written[0]) if suffix == "json.gz" else written[0]
        assert json.loads(text)["otherData"]["penstock"]["format"] == 1


def _moved(span: Span, by: float, length: float | None = None) -> Span:
    started = span.started + by
    ended = span.ended + by if length is None else started + length
    return Span(span.actor, span.what, span.layer, span.group, span.seq, started, ended, slot=span.slot, part=span.part)


@given(SPANS)
def test_reading_twice_changes_nothing_more(tmp_path_factory: pytest.TempPathFactory, spans: list[Span]) -> None:
    path = tmp_path_factory.getbasetemp() / "twice.json"
    write_trace(path, Recording(tuple(spans), (Count("queue a b", 5e4, 3), Count("odd", 5e4, 1))))
    once = read_trace(path)
    write_trace(path, once)
    assert read_trace(path) == once
    assert [count.counter for count in once.counts] == ["queue a b", "odd"]


def test_tracks_stand_in_line_order_one_per_slot_one_per_micro_batch_and_one_for_waits(record: Record) -> None:
    recording = record("stage3", attn_disk=0.05, ffn_disk=0.05, kv_seconds=0.01, gpu_groups=4)
    names = track_names(recording)
    assert 1 not in names, "viewers call the thread with the number of the process the main thread"
    assert list(names.values()) == [
        *(f"disk_reader slot {slot}" for slot in range(4)),
        "disk_reader waits",
        "pinned_stager waits",
        *(f"gpu_uploader slot {slot}" for slot in range(4)),
        "gpu_uploader waits",
        "compute_scheduler micro-batch 0",
        "compute_scheduler micro-batch 1",
        "compute_scheduler waits",
        "kv_reader waits",
        *(f"kv_uploader slot {slot}" for slot in range(3)),
        "kv_uploader waits",
        *(f"kv_swapper slot {slot}" for slot in range(3)),
        "kv_swapper waits",
    ]
    order = {one["tid"]: one["args"]["sort_index"] for one in events(recording, "M") if "sort_index" in one["args"]}
    assert sorted(names, key=order.__getitem__) == list(names)
    slices = events(recording, "X")
    assert {one["name"] for one in slices if names[one["tid"]] == "compute_scheduler micro-batch 0"} == {
        f"L{layer} {group}" for layer in range(4) for group in ("attn", "ffn")
    }
    assert slices[0]["args"].keys() == {"what", "layer", "group", "seq", "slot", "part"}
    assert min(one["ts"] for one in slices) == pytest.approx(0, abs=1e-3)


def test_times_are_whole_nanoseconds_for_readers_who_cut_and_for_readers_who_round() -> None:
    moments = [*range(3_000), 10**12 + 1, 10**15 + 1]
    spans = [Span("disk_reader", "work", 0, "attn", at, 0.0, at / 1e9) for at in moments]
    lengths = [one["dur"] * 1000 for one in events(Recording(tuple(spans), ()), "X")]
    assert [int(length) for length in lengths] == [round(length) for length in lengths] == moments


def test_overlapping_work_of_one_slot_gets_a_track_of_its_own() -> None:
    work = [Span("disk_reader", "work", 0, "attn", seq, float(seq), seq + 1.5, slot=0) for seq in range(3)]
    names = track_names(Recording(tuple(work), ()))
    assert list(names.values()) == ["disk_reader slot 0", "disk_reader slot 0 (2)"]


def test_counters_are_named_as_they_are_counted(record: Record) -> None:
    recording = record(attn_disk=0.05, ffn_disk=0.05)
    names = {f"{one['name']} {next(iter(one['args']))}" for one in events(recording, "C")}
    assert names == {count.counter for count in recording.counts} > {"queue disk_reader", "slots device"}
    assert all(len(one["args"]) == 1 for one in events(recording, "C"))


def arrows(recording: Recording) -> list[list[tuple[str, int, float]]]:
    """The slices along each arrow: actor, seq and start."""
    found = defaultdict(list)
    slices = sorted(events(recording, "X"), key=lambda one: one["ts"])
    for one in slices:
        if "bind_id" in one:
            found[one["bind_id"]].append(one)
    for way in found.values():
        assert "flow_in" not in way[0]
        assert all(one["flow_in"] for one in way[1:])
        assert all(("flow_out" in one) == (one["cat"] != "compute_scheduler") for one in way)
        assert len({(one["name"], one["args"]["seq"]) for one in way}) == 1
    return [[(one["cat"], one["args"]["seq"], one["ts"]) for one in way] for way in found.values()]


@pytest.mark.parametrize("disk", [0.0, 0.05])
@pytest.mark.parametrize("policy", ["backpressure", "stage3"])
def test_arrows_go_from_each_read_over_the_upload_to_the_computation(record: Record, policy: str, disk: float) -> None:
    found = arrows(record(policy, attn_disk=disk, ffn_disk=disk))
    parts = 2 if policy == "stage3" else 1
    way = ["disk_reader", *(["gpu_uploader"] if disk else []), *["compute_scheduler"] * parts]
    assert [[actor for actor, _, _ in slices] for slices in found] == [way] * 2 * 8
    assert sorted(slices[0][1] for slices in found) == list(range(16))


def test_a_line_that_ran_anew_has_arrows_of_its_own() -> None:
    def run(at: float, *, computed: bool) -> list[Span]:
        spans = [Span("disk_reader", "work", 0, "attn", 0, at, at + 1, slot=0)]
        return [*spans, Span("compute_scheduler", "work", 0, "attn", 0, at + 1, at + 2, slot=0)] if computed else spans

    spans = [*run(10, computed=False), *run(20, computed=True), *run(30, computed=True)]
    found = arrows(Recording(tuple(spans), ()))
    assert [[round(at / 1e6) for _, _, at in way] for way in found] == [[10, 11], [20, 21]]
