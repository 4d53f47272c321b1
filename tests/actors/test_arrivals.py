"""The fallback: a group whose upload is never heard of is loaded again, and one that is only slow is not."""

import asyncio
import time

import pytest
from support.events import LostEvent
from support.scripted_policy import ScriptedPolicy

from actors.core.arrivals import FIRST_PATIENCE, Arrivals
from actors.core.budget import Budget
from actors.core.errors import LineError
from actors.core.event import Event
from actors.core.message import READY, Message
from pipeline.devices.sim import SimEvent
from pipeline.tools.simulation.loop import run_virtual

OVERDUE = 0.1


def now() -> float:
    return asyncio.get_running_loop().time()


class Landings:
    """Stands where the prefetch queue does, and counts."""

    count = 0

    def arrived(self) -> None:
        self.count += 1


class Watched:
    """Arrivals on the running loop, and uploads that end when the test says; each into a slot of its own."""

    def __init__(self, policy: ScriptedPolicy) -> None:
        self.landings = Landings()
        self.arrivals = Arrivals(policy, self.landings)  # type: ignore[arg-type]
        self.uploads = 0
        self.is_lost = False
        self.again: list[float] = []

    async def upload(self, event: Event, kind: str = "attn", after: Event = READY) -> "asyncio.Task[None]":
        """Watch an upload, behind those before, into a slot whose last reader is `after`."""
        host, device = (Budget(place, {kind: [place]}, now) for place in ("host", "device"))
        (await device.acquire(kind)).release(after=after)
        message = Message(self.uploads, kind, self.uploads, await host.acquire(kind), READY)
        self.uploads += 1

        def again() -> Event:
            self.again.append(now())
            return LostEvent() if self.is_lost else SimEvent(now(), now() + 1.2)

        watching = self.arrivals.watch(message, await device.acquire(kind), event, again)
        return asyncio.create_task(watching)

    async def learn(self, seconds: float, kind: str = "attn") -> None:
        """Let an upload of so many seconds land."""
        await (await self.upload(SimEvent(now(), now() + seconds), kind))
        assert self.arrivals.reloaded == 0


FALLBACK = ScriptedPolicy(fallback_seconds=OVERDUE)


@pytest.mark.parametrize(("seconds", "reloaded"), [(1.0, 0), (1.09, 0), (1.11, 1)])
def test_an_upload_may_take_what_others_of_its_kind_took_and_the_fallback_more(seconds: float, reloaded: int) -> None:
    async def main() -> None:
        watched = Watched(FALLBACK)
        for each in (0.91, 1.0, 0.1):
            await watched.learn(each)
        await watched.learn(9.0, "ffn")
        began = now()
        await (await watched.upload(SimEvent(began, began + seconds)))
        assert watched.arrivals.reloaded == reloaded
        assert watched.again == pytest.approx([began + 1.1][:reloaded])
        assert now() == pytest.approx(began + (1.1 + 1.2 if reloaded else seconds))
        assert watched.landings.count == 5

    run_virtual(main())


def test_what_loading_again_took_is_normal_from_then_on() -> None:
    """A link that has become slow for good must not have everything sent twice."""

    async def main() -> None:
        watched = Watched(FALLBACK)
        await watched.learn(1.0)
        await (await watched.upload(LostEvent()))
        await (await watched.upload(SimEvent(now(), now() + 1.25)))
        assert watched.arrivals.reloaded == 1

    run_virtual(main())


@pytest.mark.parametrize(("seconds", "reloaded"), [(10.0, 0), (10.2, 1)])
def test_the_first_upload_of_a_kind_has_patience(seconds: float, reloaded: int) -> None:
    async def main() -> None:
        assert FIRST_PATIENCE * OVERDUE == 10
        watched = Watched(FALLBACK)
        await watched.learn(0.1, "ffn")
        await (await watched.upload(SimEvent(now(), now() + seconds)))
        assert watched.arrivals.reloaded == reloaded

    run_virtual(main())


def test_waiting_for_the_link_is_not_being_late() -> None:
    """Six uploads are issued at once, and the link takes them one after the other."""

    async def main() -> None:
        watched = Watched(FALLBACK)
        await watched.learn(1.0)
        began = now()
        for number in range(6):
            await watched.upload(SimEvent(began + number, began + number + 1.0))
        last = await watched.upload(SimEvent(began + 6, began + 7.2))
        await asyncio.sleep(began + 7.05 - now())
        assert watched.arrivals.reloaded == 0
        assert watched.landings.count == 7
        await last
        assert watched.arrivals.reloaded == 1, "that one took too long itself"

    run_virtual(main())


def test_waiting_for_the_slot_is_not_being_late() -> None:
    async def main() -> None:
        watched = Watched(FALLBACK)
        await watched.learn(1.0)
        computing = SimEvent(now(), now() + 50.0)
        await (await watched.upload(SimEvent(now() + 50.0, now() + 51.0), after=computing))
        assert watched.arrivals.reloaded == 0
        failing = SimEvent(now(), now() + 50.0, ValueError("the kernel failed"))
        await (await watched.upload(LostEvent(), after=failing))
        assert watched.again == pytest.approx([51.0 + 1.0 + 50.0 + 1.1]), "free, however its reader ended"

    run_virtual(main())


def test_the_upload_behind_a_failed_one_is_watched_like_any_other() -> None:
    async def main() -> None:
        watched = Watched(FALLBACK)
        await watched.learn(1.0)
        failing = await watched.upload(SimEvent(now(), now() + 1.0, OSError("the copy failed")))
        behind = await watched.upload(LostEvent())
        with pytest.raises(OSError, match="the copy failed"):
            await failing
        await behind
        assert watched.arrivals.reloaded == 1
        assert watched.landings.count == 3

    run_virtual(main())


@pytest.mark.parametrize(
    "policy", [ScriptedPolicy(), ScriptedPolicy(waits="chained", fallback_seconds=OVERDUE)], ids=["none", "chained"]
)
def test_without_a_fallback_it_waits_for_ever(policy: ScriptedPolicy) -> None:
    async def main() -> None:
        watched = Watched(policy)
        await watched.learn(1.0)
        watching = await watched.upload(LostEvent())
        await asyncio.sleep(1e6)
        assert not watching.done()
        assert (watched.arrivals.reloaded, watched.again) == (0, [])
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert watched.landings.count == 2

    run_virtual(main())


def test_a_group_whose_events_never_come_is_a_failure_and_no_hang() -> None:
    async def main() -> None:
        watched = Watched(FALLBACK)
        watched.is_lost = True
        await watched.learn(1.0)
        with pytest.raises(LineError, match="uploaded 3 times, and the event of no upload came"):
            await (await watched.upload(LostEvent()))
        assert now() == pytest.approx(1.0 + 1.1 + 2 * 11.1)
        assert watched.landings.count == 2

    run_virtual(main())


@pytest.mark.parametrize("policy", [ScriptedPolicy(), FALLBACK], ids=["none", "fallback"])
def test_an_upload_that_timed_out_itself_has_failed(policy: ScriptedPolicy) -> None:
    """The operating system's ETIMEDOUT is a TimeoutError too, and no reason to load again."""

    async def main() -> None:
        watched = Watched(policy)
        await watched.learn(1.0)
        with pytest.raises(TimeoutError, match="the link"):
            await (await watched.upload(SimEvent(now(), now() + 1.0, TimeoutError("the link"))))
        assert watched.arrivals.reloaded == 0

    run_virtual(main())


async def test_a_loop_that_was_busy_is_no_reason_to_load_again() -> None:
    """In real time: the upload landed long before the loop came round to look."""
    watched = Watched(FALLBACK)
    await watched.learn(0.001)
    watching = await watched.upload(SimEvent(now(), now() + 0.01))
    await asyncio.sleep(0)
    time.sleep(0.15)
    await watching
    assert watched.arrivals.reloaded == 0
