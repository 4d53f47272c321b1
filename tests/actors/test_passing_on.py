"""Groups that stay wake none of the actors: one message stands for all that are computed behind it."""

import itertools
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
    travels = {timings.order[0], *timings.order} - {*stays[1:]}
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
        statistics = sim.line.statistics().actors
        assert statistics["compute_scheduler"].messages == PASSES * len(timings.order)
        assert statistics["gpu_uploader"].messages == len(timings.order) + (PASSES - 1) * len(travels)

    run_virtual(main())
    computed = [item for name, item in received if name == "compute_scheduler"]
    again = [key for key in timings.order if key in travels] * (PASSES - 1)
    assert [item.key for item in computed] == [*timings.order, *again], "the first of a pass stands for those that stay"
    for one, next_ in itertools.pairwise(computed):
        assert next_.seq == one.seq + one.stands_for
    later = 2 * len(timings.order)  # in the second pass some are still computed with in the first
    again = [item for name, item in received if name != "compute_scheduler" and item.seq >= later]
    assert not [item for item in again if item.key not in travels]
    moved = len(timings.order) - len(stays)
    assert len(looks.seen) == len(stays) + PASSES * moved, "what stays passes a stage once"
