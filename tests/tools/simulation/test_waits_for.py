"""A line that hangs says who waits for what, and who holds it."""

import asyncio

import pytest

from actors.core.budget import Slot
from actors.core.message import Message
from actors.core.stage import Sink, Stage
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.loop import Deadlock, run_virtual
from pipeline.tools.simulation.sim_line import sim_line
from pipeline.tools.simulation.timings import LayerTimings

TIMINGS = LayerTimings(layers=8, attn=0.08, ffn=0.12, attn_io=0.1, ffn_io=0.1, attn_disk=0.05, ffn_disk=0.05)


class Forever(Stage):
    """Keeps layer 1's attention."""

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        if (message.layer, message.group) == (1, "attn"):
            await asyncio.Event().wait()
        return message


def hang(policy: str, insert: dict[str, list[Stage]]) -> list[str]:
    async def main() -> None:
        await sim_line(TIMINGS, policy=POLICIES[policy], gpu_groups=4, queue=1, insert=insert).line.run()

    with pytest.raises(Deadlock) as caught:
        run_virtual(main())
    message = str(caught.value)
    assert message.startswith("all tasks wait, forever: ")
    return message.removeprefix("all tasks wait, forever: ").split("; ")


def test_a_stage_that_never_returns_is_found_at_the_end_of_the_chain() -> None:
    waits = hang("backpressure", {"pinned_stager": [Forever()]})
    assert (
        "disk_reader waits for an attn slot of the host budget, "
        "held by layer 2 attn at pinned_stager, layer 1 attn at forever"
    ) in waits
    assert "pinned_stager waits for room in the queue of forever" in waits
    assert "prefetch_planner waits for room in the queue of disk_reader" in waits
    assert "gpu_uploader waits for a message from forever" in waits
    assert "compute_scheduler waits for a message from gpu_uploader" in waits
    (culprit,) = [clause for clause in waits if clause.startswith("forever ")]
    assert "Forever.handle > Event.wait with layer 1 attn" in culprit


def test_a_policy_that_waits_for_the_group_in_hand_says_so() -> None:
    waits = hang("stage1", {"gpu_uploader": [Forever()]})
    assert "prefetch_planner waits for its plan: nothing is asked for, or what was asked for has not arrived" in waits
    assert "compute_scheduler waits for a message from forever" in waits
    assert any("Forever.handle > Event.wait with layer 1 attn" in clause for clause in waits)


def test_slots_that_nobody_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sink, "give_back", lambda self, message, ran: None)
    (uploader,) = [clause for clause in hang("backpressure", {}) if clause.startswith("gpu_uploader ")]
    assert uploader == (
        "gpu_uploader waits for an attn slot of the device budget, "
        "held by no actor that would free slot 0, no actor that would free slot 1"
    )
