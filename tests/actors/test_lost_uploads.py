"""A whole line whose uploads go wrong: lost ones are made good, failed ones named, and cancelling ends cleanly."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.events import LostEvent
from support.small_lines import small_line

from actors.core.arrivals import Arrivals
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.ports import Copy
from actors.core.trace import Span, Trace
from actors.gpu_uploader import GpuUploader
from pipeline.devices.sim import SimDevice, SimEvent
from pipeline.engine.policies import POLICIES, Policy
from pipeline.tools.simulation.loop import Deadlock, run_virtual
from pipeline.tools.simulation.sim_line import SimLine

OVERDUE = 0.1
STAGE_2 = POLICIES["stage2"]


def now() -> float:
    return asyncio.get_running_loop().time()


class BadDevice(SimDevice):
    """Does as the test says with its uploads, by their number counted from 1.

    "event": the copy runs, but nobody hears of it; "copy": it does not run either; "fail": it fails; "slow": it takes
    5 seconds more.
    """

    faults: dict[int, str] = {}  # noqa: RUF012 - each test sets its own
    uploads: list[tuple[float, str]] = []  # noqa: RUF012

    def upload(self, source: Any, target: Any, copies: Any, after: Any, vacant: Event | None = None) -> Event:
        fault = self.faults.get(len(self.uploads) + 1, "none")
        self.uploads.append((now(), fault))
        if fault == "copy":
            return LostEvent()
        if fault == "slow":
            copies = [*copies, Copy(0, 0, 5_000_000_000)]
        event = super().upload(source, target, copies, after, vacant)
        if fault == "event":
            return LostEvent()
        if fault == "fail":
            assert isinstance(event, SimEvent)
            event._error = OSError("the copy failed")
        return event


@pytest.fixture
def bad_line(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimLine]:
    """A line of two hops whose uploads go wrong as `faults` says."""

    def make(faults: dict[int, str], policy: Policy = STAGE_2, **options: Any) -> SimLine:
        monkeypatch.setattr(BadDevice, "faults", faults)
        monkeypatch.setattr(BadDevice, "uploads", [])
        monkeypatch.setattr("pipeline.tools.simulation.sim_line.SimDevice", BadDevice)
        return small_line(**{"passes": 1, "gpu_groups": 10, "policy": policy, **options})

    return make


def arrivals(sim: SimLine) -> Arrivals:
    (uploader,) = [actor for actor in sim.line.actors if isinstance(actor, GpuUploader)]
    assert uploader._arrivals is not None
    return uploader._arrivals


BadLine = Callable[..., SimLine]


def work(trace: Trace, actor: str, seq: int) -> Span:
    (span,) = [span for span in trace.spans if (span.actor, span.what, span.seq) == (actor, "work", seq)]
    return span


@pytest.mark.parametrize("fault", ["event", "copy"])
@pytest.mark.parametrize("waits", ["event", "blocking"])
@pytest.mark.parametrize("host_groups", [2, 10])
def test_an_upload_that_is_never_heard_of_is_loaded_again(
    fault: str, waits: Any, host_groups: int, bad_line: BadLine, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        trace, policy = Trace(), replace(STAGE_2, waits=waits)
        sim = bad_line({5: fault}, policy, passes=2, host_groups=host_groups, trace=trace)
        await sim.line.run()
        assert [one.steps for one in sim.program.passes] == [list(sim.program.order)] * 2
        computed = [span.seq for span in trace.spans if span.actor == "compute_scheduler" and span.what == "work"]
        assert sorted(computed) == list(range(16)), "all once"
        assert arrivals(sim).reloaded == 1
        lost = work(trace, "gpu_uploader", seq=4)
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("penstock", logging.WARNING)
        assert record.getMessage() == (
            f"layer {lost.layer} {lost.group}: the event of its upload is overdue; loading the group again"
        )
        # It could begin when the one before had landed, and was given the 100 ms that those had taken, and 100 more.
        again = work(trace, "gpu_uploader", seq=3).ended + 0.1 + OVERDUE
        assert next(at for at, _ in BadDevice.uploads if at > again - 0.01) == pytest.approx(again, abs=1e-5)
        assert len(BadDevice.uploads) == 16 + 1
        others = 0.1 if (fault, host_groups) == ("event", 10) else 0.0  # one more has taken the link in the meantime
        assert lost.ended == pytest.approx(again + others + 0.1, abs=1e-5), "from the first upload to the second's end"
        assert work(trace, "compute_scheduler", seq=4).started >= lost.ended
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]

    run_virtual(main())


def test_every_lost_event_is_made_good(bad_line: BadLine) -> None:
    async def main() -> None:
        sim = bad_line(dict.fromkeys((1, 5, 9, 13), "copy"), passes=2)
        await sim.line.run()
        assert [one.steps for one in sim.program.passes] == [list(sim.program.order)] * 2
        assert arrivals(sim).reloaded == 4

    run_virtual(main())


@pytest.mark.parametrize("name", ["history", "stage1", "stage2"])
def test_slow_uploads_are_not_loaded_again(name: str, bad_line: BadLine) -> None:
    """Each takes 5 s: longer than a fallback of 100 ms, but what is normal here."""

    async def main() -> None:
        sim = bad_line({}, replace(POLICIES[name], fallback_seconds=OVERDUE), transfer_ms=5000, passes=2)
        await sim.line.run()
        assert arrivals(sim).reloaded == 0
        assert len(BadDevice.uploads) == 16

    run_virtual(main())


def test_without_a_fallback_a_lost_event_stops_the_line(bad_line: BadLine) -> None:
    async def main() -> None:
        await bad_line({5: "event"}, POLICIES["stage1"]).line.run()

    with pytest.raises(Deadlock, match=r"Arrivals\.watch"):
        run_virtual(main())
    assert len(BadDevice.uploads) <= 8


@pytest.mark.parametrize(("name", "reloaded"), [("stage2", 1), ("stage3", 0)])
def test_a_chained_computation_is_never_overtaken_by_a_fallback(name: str, reloaded: int, bad_line: BadLine) -> None:
    """It may be using the group already when the host wakes up, so that nothing may be written over it."""

    async def main() -> None:
        sim = bad_line({5: "slow"}, replace(POLICIES[name], fallback_seconds=OVERDUE))
        await sim.line.run()
        assert arrivals(sim).reloaded == reloaded
        assert len(BadDevice.uploads) == 8 + reloaded
        assert now() > 5.0

    run_virtual(main())


@pytest.mark.parametrize("name", ["history", "stage1", "stage2", "stage3", "backpressure"])
def test_an_upload_that_fails_is_the_uploaders_failure(name: str, bad_line: BadLine) -> None:
    async def main() -> None:
        faults = {5: "fail"}
        trace = Trace()
        sim = bad_line(faults, POLICIES[name], trace=trace)
        with pytest.raises(ActorFailed, match=r"gpu_uploader failed at layer.*the copy failed") as caught:
            await sim.line.run()
        assert caught.value.actor == "gpu_uploader"
        failed = work(trace, "gpu_uploader", seq=4)
        assert (caught.value.layer, caught.value.group) == (failed.layer, failed.group)
        assert len(BadDevice.uploads) <= 8, "nothing was loaded again"
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]
        faults.clear()
        await sim.line.run()
        assert sim.program.passes[-1].steps == list(sim.program.order)

    run_virtual(main())


@pytest.mark.parametrize("fault", ["event", "copy"])
def test_a_line_that_is_cancelled_while_somebody_watches_ends_cleanly(fault: str, bad_line: BadLine) -> None:
    """At every stage of a lost upload: before it, on its way, overdue, being read, being uploaded again."""

    async def cancelled_after(seconds: float) -> int:
        faults = {5: fault}
        sim = bad_line(faults, disk_ms=20)
        running = asyncio.create_task(sim.line.run())
        await asyncio.sleep(seconds)
        reloaded = arrivals(sim).reloaded
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(asyncio.all_tasks()) == 1
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]
        faults.clear()
        await sim.line.run()
        assert sim.program.passes[-1].steps == list(sim.program.order)
        return reloaded

    assert [run_virtual(cancelled_after(0.01 + 0.05 * step)) for step in range(20)] == sorted([0] * 13 + [1] * 7)
