"""An event of a stage's own comes behind the arrival of the bytes (rule 4), whoever ends it, and keeps its errors."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support.events import ForeignEvent
from support.small_lines import small_line

from actors.core.budget import Budget, Slot
from actors.core.chained import Chained, behind, on_host, parts
from actors.core.errors import ActorFailed
from actors.core.event import Event
from actors.core.message import READY, Message
from actors.core.stage import Mover, Stage
from pipeline.devices.sim import SimDevice, SimEvent
from pipeline.tools.simulation.loop import run_virtual


def message(event: Event) -> Message[Any]:
    return Message(1, "ffn", 3, None, event)


def test_what_needs_no_chain_gets_none() -> None:
    pending, own, failed = ForeignEvent(ended=False), ForeignEvent(ended=False), ForeignEvent(error=OSError("disk"))
    assert behind(message(READY), own, "mover") is own
    assert behind(message(pending), READY, "mover") is pending, "nothing has happened beside the arrival"
    assert behind(message(pending), pending, "mover") is pending
    assert behind(message(failed), READY, "mover") is failed, "it is not forgotten"
    assert isinstance(behind(message(pending), own, "mover"), Chained)
    assert isinstance(behind(message(failed), own, "mover"), Chained)


def test_a_chain_is_done_when_both_are_and_tells_who_failed() -> None:
    async def main() -> None:
        for first, second in ((1.0, 3.0), (3.0, 1.0)):
            start = asyncio.get_running_loop().time()
            arrival, own = SimEvent(start, start + first), SimEvent(start, start + second)
            chain = Chained(message(arrival), own, "mover")
            assert (chain.done(), chain.error, chain.parts) == (False, None, (arrival, own))
            await chain.wait()
            assert asyncio.get_running_loop().time() == pytest.approx(start + 3)
            assert (chain.done(), chain.span) == (True, own.span)
        failed, fine = ForeignEvent(error=OSError("disk")), ForeignEvent()
        with pytest.raises(ActorFailed, match=r"mover failed at layer 1 group 'ffn'.*disk"):
            await Chained(message(failed), fine, "mover").wait()
        with pytest.raises(OSError, match="disk"):
            await Chained(message(fine), failed, "mover").wait()
        chain = Chained(message(Chained(message(fine), READY, "mover")), failed, "mover")
        assert chain.parts == [fine, READY, failed]
        assert parts(None, chain, fine) == [None, fine, READY, failed, fine]
        assert not on_host(chain)

    run_virtual(main())


@pytest.mark.parametrize("after", ["disk_reader", "gpu_uploader"])
@pytest.mark.parametrize("kind", ["stage", "mover"])
def test_nobody_takes_the_end_of_own_work_for_the_arrival(kind: str, after: str) -> None:
    """The work takes no time; the bytes take 100 ms, or 200 ms beside one another."""
    moments: dict[int, tuple[float, float]] = {}

    class Log(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            return message.moved(message.at, self.start(message, self.log(message)))

        async def log(self, message: Message[Slot]) -> None:
            pass

    class LogMover(Mover):
        async def move(self, message: Message[Any], slot: Slot) -> Event:
            return self.start(message, asyncio.sleep(0))

    class Note(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            came = asyncio.get_running_loop().time()
            await self.landed(message)
            moments[message.seq] = came, asyncio.get_running_loop().time()
            return message

    async def main(inserted: list[Any]) -> list[float]:
        moments.clear()
        sim = small_line(layers=2, passes=2, disk_ms=100, transfer_ms=200, insert={after: [*inserted, Note()]})
        await sim.run()
        assert [one.steps for one in sim.program.passes] == [list(sim.program.order)] * 2
        return [landed for _, landed in moments.values()]

    expected = run_virtual(main([]))
    assert run_virtual(main([Log() if kind == "stage" else LogMover()])) == pytest.approx(expected)


def test_a_device_waits_for_a_chain_itself() -> None:
    async def main() -> None:
        device = SimDevice(h2d_bytes_per_second=1.0)
        arrival = device.launch("h2d", lambda: 3.0, ())
        own = device.launch("own", lambda: 1.0, ())
        chain = behind(message(arrival), own, "mover")
        assert isinstance(chain, Chained)
        launched = device.launch("compute", lambda: 1.0, (chain,))
        await launched.wait()
        assert launched.span == pytest.approx((3.0, 4.0))
        copied = device.upload(object(), object(), (), (), vacant=chain)
        await copied.wait()
        assert asyncio.get_running_loop().time() >= 3.0
        failed = device.launch("h2d", lambda: 1 / 0, ())
        after = device.launch("compute", lambda: 1.0, (behind(message(failed), own, "mover"),))
        with pytest.raises(ZeroDivisionError):
            await after.wait()

    run_virtual(main())


async def run_with_failing_uploads(stage: Stage) -> None:
    """Run a line with the stage behind an uploader all of whose copies fail."""
    sim = small_line(layers=2, passes=1, insert={"gpu_uploader": [stage]})
    uploader = sim.line.actors[3]
    upload = uploader._device.upload  # type: ignore[attr-defined]

    def failing(*arguments: Any, **options: Any) -> Event:
        event: SimEvent = upload(*arguments, **options)
        return SimEvent(event._started, event.ended, OSError("the copy failed"))

    uploader._device.upload = failing  # type: ignore[attr-defined]
    await sim.run()


@pytest.mark.parametrize("own", ["READY", "work"])
def test_an_arrival_that_failed_is_not_forgotten_and_keeps_its_name(own: str) -> None:
    class Replace(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            event = READY if own == "READY" else self.start(message, asyncio.sleep(0.01))
            return replace(message, event=event)

    with pytest.raises(ActorFailed, match=r"gpu_uploader failed at layer 0 group 'attn'.*the copy failed"):
        run_virtual(run_with_failing_uploads(Replace()))


def test_a_stage_touches_no_bytes_that_did_not_arrive() -> None:
    touched: list[int] = []

    class Touch(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            await self.landed(message)
            touched.append(message.seq)
            return message

    with pytest.raises(ActorFailed, match=r"gpu_uploader failed at layer 0 group 'attn'.*the copy failed"):
        run_virtual(run_with_failing_uploads(Touch()))
    assert touched == []


def test_a_copy_waits_for_work_of_the_host_that_still_reads_its_slot() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        copied: list[tuple[int, Event, float]] = []

        class Unpacks(Mover):
            budget = Budget("unpacked", {"attn": ["memory"] * 4, "ffn": ["memory"] * 4}, loop.time)

            async def move(self, message: Message[Slot], slot: Slot) -> Event:
                await self.landed(message)
                return self.start(message, self.unpack(message))

            async def unpack(self, message: Message[Slot]) -> None:
                await asyncio.sleep(3)
                copied.append((message.at.index, message.event, loop.time()))

        await small_line(layers=3, passes=1, gpu_groups=2, insert={"gpu_uploader": [Unpacks()]}).run()
        read_until: dict[int, float] = {}
        for index, upload, ended_at in copied:
            assert upload.span is not None
            assert upload.span[0] >= read_until.get(index, 0)
            read_until[index] = ended_at
        assert len(copied) == 6 > len(read_until)

    run_virtual(main())
