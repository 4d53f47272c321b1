"""Every caller of a failure gets an error object of its own: one that is raised collects its caller's frames."""

import asyncio
import copy
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline import ActorFailed, ClosedError, Message, Model, Slot, Stage

SETTINGS: dict[str, Any] = {"device": "cpu", "context_tokens": 48, "kv_tokens": 96, "max_requests": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors") / "model"
    write_small_checkpoint(folder, "llama-3-8b")
    return folder


async def tokens(model: Model, prompt: list[int]) -> tuple[int, ...]:
    return (await model.generate(prompt, max_new_tokens=40, ignore_eos=True)).token_ids


class Trip(Stage):
    armed = False

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        if self.armed:
            self.armed = False
            raise ValueError("on purpose")
        return message


async def test_a_stage_that_raises_tells_everybody_each_with_an_error_of_its_own(checkpoint: Path) -> None:
    async def caller(secret: int) -> tuple[int, ...]:
        return await tokens(model, [secret, secret])

    stage = Trip()
    settings = {**SETTINGS, "residency": False, "insert": {"disk_reader": [stage]}}
    async with asyncio.timeout(30), Model.open(checkpoint, **settings) as model:
        calls = [asyncio.create_task(caller(secret)) for secret in range(10)]
        while model.statistics().requests.running < 2:
            await asyncio.sleep(0)
        stage.armed = True
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [(type(error), str(error)) for error in errors] == [(ActorFailed, str(errors[0]))] * 10
        assert "trip failed at layer" in str(errors[0])
        assert len({id(error) for error in errors}) == 10
        assert len({id(error.__cause__) for error in errors if isinstance(error, ActorFailed)}) == 1
        for secret, error in enumerate(errors):
            assert isinstance(error, ActorFailed)
            assert (error.actor, type(error.__cause__)) == ("trip", ValueError)
            frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
            assert [local["secret"] for local in frames if "secret" in local] == [secret]
        assert len(await caller(1)) == 40


class Sticky(Stage):
    """Takes its time to stop."""

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        try:
            await self.landed(message)
        finally:
            await asyncio.sleep(0.05)
        return message


async def test_whoever_comes_while_the_line_stops_is_not_told_of_what_was_before(checkpoint: Path) -> None:
    stage = Trip()
    settings = {**SETTINGS, "residency": False, "insert": {"disk_reader": [stage], "pinned_stager": [Sticky()]}}
    async with asyncio.timeout(60), Model.open(checkpoint, **settings) as model:
        expected = (await model.generate([5, 9], max_new_tokens=2)).token_ids
        call = asyncio.create_task(tokens(model, [1, 2]))
        for _ in range(2):
            stage.armed = True
            with pytest.raises(ActorFailed):
                await call
            call = asyncio.create_task(tokens(model, [1, 2]))
        stage.armed = True
        await asyncio.gather(call, return_exceptions=True)  # an error that is never looked at fails the test
        assert (await model.generate([5, 9], max_new_tokens=2)).token_ids == expected


async def test_every_caller_of_a_model_that_closes_has_an_error_of_its_own(checkpoint: Path) -> None:
    model = await Model.open(checkpoint, **SETTINGS)
    calls = [asyncio.create_task(tokens(model, [1, 2])) for _ in range(6)]
    await asyncio.sleep(0.01)
    await model.aclose()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {ClosedError}
    assert len({id(error) for error in errors}) == 6


def test_an_error_can_be_copied_and_pickled() -> None:
    error = ActorFailed("disk_reader", 3, "ffn", OSError(5, "disk"))
    error.add_note("seen by an operator")
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is ActorFailed
        assert (str(other), other.actor, other.layer, other.group) == (str(error), "disk_reader", 3, "ffn")
        assert (repr(other.__cause__), other.__notes__) == (repr(error.__cause__), ["seen by an operator"])


async def test_nothing_is_held_after_closing_in_a_pass(checkpoint: Path) -> None:
    model = await Model.open(checkpoint, **SETTINGS)
    calls = [asyncio.create_task(tokens(model, [1, 2])) for _ in range(4)]
    while not model.runtime.admission.in_pass:
        await asyncio.sleep(0)
    await model.aclose()
    await asyncio.gather(*calls, return_exceptions=True)
    requests = model.statistics().requests
    assert (requests.running, requests.waiting, requests.failed) == (0, 0, 4)
    assert model.statistics().kv_blocks.used == 0
