"""Groups that stay do not wake the actors that would only hand them on; order and sums stay as they are."""

from typing import Any

import pytest

from actors.core.channel import Receiver
from actors.core.message import Message
from actors.core.stage import Stage
from pipeline.engine.residency import Residency
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.sim_line import sim_line
from pipeline.tools.simulation.timings import LayerTimings

PASSES = 5


class _TwoLinks(LayerTimings):
    one_link = False


class _Looks(Stage):
    name = "looks"

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def handle(self, message: Message[Any]) -> Message[Any]:
        self.seen.append(message.layer)
        return message


@pytest.mark.parametrize("every", [1, 2, 3])
def test_groups_that_stay_wake_nobody_but_the_scheduler(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timings = _TwoLinks(layers=6, attn=0.1, ffn=0.2, attn_io=0.1, ffn_io=0.2)
    stays = timings.order[::every]
    received: list[tuple[str, Any]] = []
    receive = Receiver.receive

    async def note(self: Receiver[Any]) -> Any:
        item = await receive(self)
        received.append((self.name, item))
        return item

    monkeypatch.setattr(Receiver, "receive", note)
    looks = _Looks()

    async def main() -> None:
        sim = sim_line(
            timings, passes=PASSES, residency=Residency({"device": stays}), insert={"disk_reader": [looks]}, queue=4
        )
        await sim.run()
        assert sim.line.statistics().actors["gpu_uploader"].messages == PASSES * len(timings.order)

    run_virtual(main())
    computed = [item.seq for name, item in received if name == "compute_scheduler"]
    assert computed == list(range(PASSES * len(timings.order)))
    later = 2 * len(timings.order)  # in the second pass some are still computed with in the first
    again = [item for name, item in received if name != "compute_scheduler" and item.seq >= later]
    assert not [item for item in again if item.key in stays]
    moved = len(timings.order) - len(stays)
    assert len(looks.seen) == len(stays) + PASSES * moved, "what stays passes a stage once"
