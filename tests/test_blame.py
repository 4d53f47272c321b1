"""Who is named when something fails, and that the failure of one does not become the failure of another."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pipeline import ActorFailed, Message, Model, Slot, Stage
from pipeline.errors import PenstockError
from pipeline.models import decoder

pytestmark = pytest.mark.usefixtures("everything_moves")
PROMPT = "class Stack:\n"


class Look(Stage):
    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        return message


def fail_twice(error: BaseException) -> Any:
    """After a first failure those that run are computed anew."""
    ffn_half, failures = decoder.ffn_half, [error, error]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return ffn_half(*arguments)

    return failing


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
@pytest.mark.parametrize("after", ["disk_reader", "gpu_uploader"])
async def test_a_failed_computation_is_the_schedulers_whoever_watches_the_slot_next(
    device: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Model.open(device=device, gpu_groups=2, insert={after: [Look()]}) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        for _ in range(3):
            monkeypatch.setattr(decoder, "ffn_half", fail_twice(ValueError("the kernel failed")))
            with pytest.raises(ActorFailed, match=r"compute_scheduler failed at layer 0 group 'ffn'.*the kernel"):
                await model.generate(PROMPT, max_new_tokens=2)
            monkeypatch.undo()
            assert await model.generate(PROMPT, max_new_tokens=2) == expected


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_work_that_raises_cancelled_error_is_an_error_like_any_other(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(20), Model.open(device=device) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        monkeypatch.setattr(decoder, "ffn_half", fail_twice(asyncio.CancelledError()))
        with pytest.raises(ActorFailed, match=r"compute_scheduler failed at layer 0 group 'ffn'.*CancelledError"):
            await model.generate(PROMPT, max_new_tokens=2)
        for _ in range(2):
            assert await model.generate(PROMPT, max_new_tokens=2) == expected


@pytest.mark.parametrize("after", ["pinned_stager", "gpu_uploader"])
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
@pytest.mark.parametrize("policy", ["backpressure", "stage3"])
async def test_a_stages_own_device_work_is_the_stages(policy: str, device: str, after: str) -> None:
    class Transform(Stage):
        armed = False

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            if not self.armed:
                return message
            event = model.runtime.device.launch("transform", self.work, (message.event,))
            return replace(message, event=event)

        def work(self) -> None:
            raise ValueError("the transformation failed")

    transform = Transform()
    async with Model.open(device=device, policy=policy, residency=False, insert={after: [transform]}) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        transform.armed = True
        with pytest.raises(ActorFailed, match=r"transform failed at layer.*the transformation failed"):
            await model.generate(PROMPT, max_new_tokens=8)
        transform.armed = False
        assert await model.generate(PROMPT, max_new_tokens=2) == expected


async def test_a_line_that_runs_cannot_be_run_twice_and_goes_on() -> None:
    async with Model.open() as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        for _ in range(2):
            with pytest.raises(PenstockError, match="is at work in a running line"):
                await model.runtime.line.run()
            assert await model.generate(PROMPT, max_new_tokens=2) == expected


async def test_a_failure_in_a_pass_that_samples_nothing_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(device="cpu", max_tokens_per_pass=2) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        monkeypatch.setattr(decoder, "ffn_half", fail_twice(ValueError("the kernel failed")))
        with pytest.raises(ActorFailed, match=r"layer 0 group 'ffn'.*the kernel failed"):
            await model.generate(PROMPT, max_new_tokens=2)
        assert await model.generate(PROMPT, max_new_tokens=2) == expected


async def test_a_failed_embedding_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(device="cpu") as model:
        monkeypatch.setattr("pipeline.generation.pass_work.rotary", lambda *_: 1 / 0)
        with pytest.raises(ActorFailed, match=r"compute_scheduler failed at layer -1 group 'embed'.*ZeroDivisionError"):
            await model.generate(PROMPT, max_new_tokens=2)


async def test_a_cancelled_request_stops_computing_at_the_next_group(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(device="cpu") as model:
        launched, lanes = model.runtime.device.launch, []

        def note(lane: str, *arguments: Any, **options: Any) -> Any:
            lanes.append(lane)
            return launched(lane, *arguments, **options)

        monkeypatch.setattr(model.runtime.device, "launch", note)
        call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=1))
        while len(lanes) < 2:
            await asyncio.sleep(0)
        call.cancel()
        await model.generate(PROMPT, max_new_tokens=1)
        whole_pass = 1 + len(model.runtime.catalog.order)
        assert whole_pass < len(lanes) < 1.5 * whole_pass, "not even what is left of the layers"
