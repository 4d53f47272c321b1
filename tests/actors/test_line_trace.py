"""What a line writes down: whose time, in which slot, for which part; how full queues and budgets were, and when."""

import asyncio
import itertools
from collections import defaultdict
from typing import Any

import pytest
from support.small_lines import small_line

from actors.core.budget import Budget, Slot
from actors.core.event import Event
from actors.core.line import LineStatistics
from actors.core.message import Message
from actors.core.stage import Mover, Stage
from actors.core.trace import Span, Trace
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.loop import run_virtual


def traced(**options: Any) -> tuple[Trace, LineStatistics]:
    """Run a line to its end."""

    async def main() -> tuple[Trace, LineStatistics]:
        sim = small_line(**{"trace": Trace(), **options})
        await sim.line.run()
        return sim.line.trace, sim.line.statistics()

    return run_virtual(main())


def works(trace: Trace, actor: str) -> list[Span]:
    """By message and part."""
    spans = [span for span in trace.spans if (span.actor, span.what) == (actor, "work")]
    return sorted(spans, key=lambda span: (span.seq, span.part))


def counts(trace: Trace) -> dict[str, list[tuple[float, int]]]:
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for count in trace.counts:
        found[count.counter].append((pytest.approx(count.at), count.value))  # type: ignore[arg-type]
    return dict(found)


def test_spans_of_a_tiny_line() -> None:
    """One layer, and everything takes 100 ms; the second group finds the disk taken."""
    trace, _ = traced(layers=1, passes=1, gpu_groups=2, disk_ms=100, attn_ms=100, ffn_ms=100)
    for actor, ends in {"disk_reader": (0.1, 0.2), "gpu_uploader": (0.2, 0.3), "compute_scheduler": (0.3, 0.4)}.items():
        starts = (0.0, 0.0) if actor == "disk_reader" else tuple(end - 0.1 for end in ends)
        assert works(trace, actor) == [
            Span(actor, "work", 0, group, seq, pytest.approx(start), pytest.approx(end), slot=seq)  # type: ignore[arg-type]
            for seq, (group, start, end) in enumerate(zip(("attn", "ffn"), starts, ends, strict=True))
        ]
    assert {span.slot for span in trace.spans if span.what != "work"} == {-1}


def test_counts_of_a_tiny_line() -> None:
    trace, statistics = traced(layers=1, passes=1, gpu_groups=2, disk_ms=100, attn_ms=100, ffn_ms=100)
    in_and_out = [(0.1, 1), (0.1, 0), (0.2, 1), (0.2, 0)]
    assert counts(trace) == {
        "queue disk_reader": [(0.0, 1), (0.0, 0), (0.0, 1), (0.0, 0)],
        "slots host": [(0.0, 1), (0.0, 2), (0.1, 1), (0.2, 0)],
        "queue pinned_stager": [(0.0, 1), (0.0, 0), (0.0, 1), (0.1, 0)],
        "queue gpu_uploader": in_and_out,
        "slots device": in_and_out,
        "queue compute_scheduler": in_and_out,
    }
    assert [count.at for count in trace.counts] == sorted(count.at for count in trace.counts)
    for name, budget in statistics.budgets.items():
        assert max(value for _, value in counts(trace)[f"slots {name}"]) == budget.peak
    for name, channel in statistics.channels.items():
        assert max(value for _, value in counts(trace)[f"queue {name}"]) == channel.peak


@pytest.mark.parametrize("policy", ["backpressure", "stage1", "stage2", "stage3"])
def test_uploads_are_told_from_when_the_link_took_them(policy: str) -> None:
    """Whether somebody watches over them or not: they are issued while the link is still taken."""
    trace, _ = traced(policy=POLICIES[policy], gpu_groups=10)
    uploads = sorted(works(trace, "gpu_uploader"), key=lambda span: span.started)
    assert [span.ended - span.started for span in uploads] == pytest.approx([0.1] * 16)
    assert all(left.ended <= right.started + 1e-9 for left, right in itertools.pairwise(uploads))
    assert any(left.ended == pytest.approx(right.started) for left, right in itertools.pairwise(uploads))


@pytest.mark.parametrize("policy", ["backpressure", "stage1", "stage2", "stage3"])
@pytest.mark.parametrize("disk_ms", [30, 0], ids=["two hops", "one link"])
def test_a_group_is_computed_in_the_slot_that_it_arrived_in(policy: str, disk_ms: float) -> None:
    trace, _ = traced(policy=POLICIES[policy], gpu_groups=6, disk_ms=disk_ms)
    arrived = {span.seq: span.slot for span in works(trace, "gpu_uploader" if disk_ms else "disk_reader")}
    computed = {span.seq: span.slot for span in works(trace, "compute_scheduler")}
    assert len(arrived) == 16
    assert arrived == computed
    kinds = {(span.slot < 3) == (span.group == "attn") for span in works(trace, "compute_scheduler")}
    assert kinds == {True}, "attn slots come first"


@pytest.mark.parametrize(("policy", "parts"), [("stage2", 1), ("stage3", 2)])
def test_each_micro_batch_has_a_span_of_its_own(policy: str, parts: int) -> None:
    trace, statistics = traced(policy=POLICIES[policy], gpu_groups=10)
    computed = works(trace, "compute_scheduler")
    assert [(span.seq, span.part) for span in computed] == [(seq, part) for seq in range(16) for part in range(parts)]
    seconds = {span.group: span.ended - span.started for span in computed}
    assert seconds == pytest.approx({"attn": 0.08 / parts, "ffn": 0.12 / parts})
    assert {span.part for span in trace.spans if span.actor != "compute_scheduler"} == {0}
    assert statistics.actors["compute_scheduler"].messages == 16


def test_nothing_is_kept_while_recording_is_off_and_it_can_be_switched_on_in_between() -> None:
    async def main() -> None:
        trace = Trace(recording=False)
        sim = small_line(trace=trace)
        running = asyncio.create_task(sim.line.run())
        await asyncio.sleep(0.75)
        assert not trace.spans
        assert not trace.counts
        trace.recording = True
        await asyncio.sleep(0.4)
        trace.recording = False
        kept = len(trace.spans), len(trace.counts)
        await running
        assert (len(trace.spans), len(trace.counts)) == kept
        assert {span.actor for span in trace.spans} >= {"disk_reader", "gpu_uploader", "compute_scheduler"}
        assert all(0.7 < count.at < 1.16 for count in trace.counts)
        assert set(counts(trace)) >= {"slots host", "slots device", "queue disk_reader", "queue compute_scheduler"}
        statistics = sim.line.statistics().actors["compute_scheduler"]
        assert statistics.messages == 16, "sums are kept all the same"
        assert statistics.busy_seconds == pytest.approx(8 * 0.2)

    run_virtual(main())


def test_a_line_without_a_trace_records_nothing() -> None:
    async def main() -> None:
        sim = small_line()
        await sim.line.run()
        assert not sim.line.trace.spans
        assert not sim.line.trace.counts

    run_virtual(main())


def test_a_trace_can_be_cleared() -> None:
    trace, _ = traced(layers=1)
    assert trace.spans
    assert trace.counts
    trace.clear()
    assert not trace.spans
    assert not trace.counts


class Inspect(Stage):
    """Looks at each group for 20 ms, once it is there."""

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        await asyncio.sleep(0.02)
        return message


class Unpack(Mover):
    """Takes 30 ms for each group, in a slot of its own."""

    name = "unpacker"

    def __init__(self) -> None:
        cells = {kind: [f"{kind} {index}" for index in range(2)] for kind in ("attn", "ffn")}
        self.budget = Budget("scratch", cells, asyncio.get_running_loop().time)

    async def move(self, message: Message[Slot], slot: Slot) -> Event:
        await self.vacated(message, slot)
        return self.start(message, self._unpack(message))

    async def _unpack(self, message: Message[Slot]) -> None:
        await message.event.wait()
        await asyncio.sleep(0.03)


def test_a_users_stage_and_mover_are_seen_like_the_runtimes_own() -> None:
    async def main() -> None:
        trace = Trace()
        sim = small_line(
            trace=trace,
            layers=3,
            disk_ms=10,
            transfer_ms=40,
            insert={"disk_reader": [Unpack(), Inspect()]},
        )
        await sim.line.run()
        statistics = sim.line.statistics()
        keys = [(seq, seq % 6 // 2, ("attn", "ffn")[seq % 2]) for seq in range(12)]
        for actor, slots in {"unpacker": {0, 1, 2, 3}, "inspect": {0, 1, 2, 3}}.items():
            found = works(trace, actor)
            assert [(span.seq, span.layer, span.group) for span in found] == keys
            assert {span.slot for span in found} == slots
            assert statistics.actors[actor].messages == 12
            assert statistics.channels[actor].sent == 12
            assert {value for _, value in counts(trace)[f"queue {actor}"]} == {0, 1}
        assert [span.ended - span.started for span in works(trace, "inspect")] == pytest.approx([0.02] * 12)
        assert statistics.actors["inspect"].busy_seconds == pytest.approx(12 * 0.02)
        assert all(span.ended - span.started >= 0.03 - 1e-9 for span in works(trace, "unpacker"))
        waits = {span.what for span in trace.spans if span.actor == "inspect" and span.what != "work"}
        assert "event" in waits
        assert statistics.budgets["scratch"].held == 0
        assert counts(trace)["slots scratch"][-1][1] == 0

    run_virtual(main())
