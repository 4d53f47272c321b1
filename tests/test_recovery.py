"""After a failure, a restart or a close: the next request works, nothing is held, nobody hangs (rules 3, 6 and 7)."""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from actors.core.event import Event
from actors.core.message import READY
from pipeline import ActorFailed, ClosedError, Message, Model, Mover, RequestError, Slot, Stage
from pipeline.generation.token_tables import TokenTables
from pipeline.models import decoder
from pipeline.reading.rows import RowReader

pytestmark = pytest.mark.usefixtures("everything_moves")
PROMPT = "class Stack:\n"


def fail(function: Callable[..., Any], error: BaseException, times: int) -> Callable[..., Any]:
    failures = [error] * times

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return function(*arguments)

    return failing


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
@pytest.mark.parametrize("error", [ValueError("the kernel failed"), StopIteration("odd")], ids=repr)
async def test_a_computation_that_failed_is_done_anew_and_one_that_fails_again_is_told(
    device: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Model.open(device=device) as model:
        expected = await model.generate(PROMPT, max_new_tokens=3)
        monkeypatch.setattr(decoder, "ffn_half", fail(decoder.ffn_half, error, times=1))
        assert await model.generate(PROMPT, max_new_tokens=3) == expected
        monkeypatch.setattr(decoder, "ffn_half", fail(decoder.ffn_half, error, times=2))
        with pytest.raises(ActorFailed, match=r"compute_scheduler failed at layer 0 group 'ffn'.*") as caught:
            await model.generate(PROMPT, max_new_tokens=3)
        assert str(error) in str(caught.value)
        for _ in range(3):
            assert await model.generate(PROMPT, max_new_tokens=3) == expected


class Look(Stage):
    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        return message


@pytest.mark.parametrize("stages", [[], [Look()]], ids=["plain", "watched"])
async def test_a_failed_upload_is_the_uploaders(stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(device="cpu-copy", insert={"gpu_uploader": stages}) as model:
        expected = await model.generate(PROMPT, max_new_tokens=3)
        copy = fail(lambda *_: None, RuntimeError("DMA failed"), times=1000)
        device = model.runtime.device
        upload = device.upload

        def failing(source: Any, target: Any, copies: Any, after: Any, vacant: Event | None = None) -> Event:
            if target.nbytes > 900_000:
                after = (*after, device.launch("broken", copy, ()))
            return upload(source, target, copies, after, vacant)

        monkeypatch.setattr(device, "upload", failing)
        with pytest.raises(ActorFailed, match=r"gpu_uploader failed at layer \d+ group 'ffn'.*DMA failed"):
            await model.generate(PROMPT, max_new_tokens=8)
        monkeypatch.undo()
        assert await model.generate(PROMPT, max_new_tokens=3) == expected


async def test_a_failed_embedding_row_is_named_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open() as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        read = RowReader.read
        failures = [1]

        async def flaky(self: RowReader, *arguments: Any) -> None:
            if failures:
                failures.pop()
                raise OSError(5, "Input/output error")
            await read(self, *arguments)

        monkeypatch.setattr(RowReader, "read", flaky)
        assert await model.generate(PROMPT, max_new_tokens=2) == expected
        failures.extend([1] * 50)
        with pytest.raises(ActorFailed, match="compute_scheduler failed at layer -1 group 'embed'"):
            await model.generate(PROMPT, max_new_tokens=2)
        failures.clear()
        assert await model.generate(PROMPT, max_new_tokens=2) == expected


async def test_a_sampler_that_fails_ends_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open() as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        monkeypatch.setattr(TokenTables, "update", fail(TokenTables.update, ValueError("bad table"), times=1))
        arguments = {"max_new_tokens": 2, "frequency_penalty": 1e-9}
        first, second = await asyncio.gather(
            *(model.generate(PROMPT, **arguments) for _ in range(2)), return_exceptions=True
        )
        assert isinstance(first, RequestError)
        assert "bad table" in str(first)
        assert second == expected


class Careless(Mover):
    async def move(self, message: Message[Any], slot: Slot) -> Event:
        await self.landed(message)
        return None  # type: ignore[return-value]


class Quitter(Stage):
    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        raise asyncio.CancelledError


class Dropper(Stage):
    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        async def drop() -> None:
            raise asyncio.CancelledError

        operation = self.start(message, drop())
        await operation.wait()
        return message


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Careless(), "careless failed at layer 0.*must give an event, gave None"),
        (Quitter(), "quitter failed at layer 0.*raising CancelledError"),
        (Dropper(), "dropper failed at layer 0.*raising CancelledError"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_broken_stage_reaches_the_caller_and_close_returns(stage: Stage | Mover, says: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with asyncio.timeout(20):
        async with Model.open(insert={"disk_reader": [stage]}) as model:
            for _ in range(2):
                with pytest.raises(ActorFailed, match=says):
                    await model.generate(PROMPT, max_new_tokens=2)
    assert len(os.listdir("/proc/self/fd")) == before


class Lazy(Mover):
    """Lets the host work on the bytes beside the line, behind any actor."""

    async def move(self, message: Message[Any], slot: Slot) -> Event:
        return self.start(message, self.work(message))

    async def work(self, message: Message[Any]) -> None:
        await self.landed(message)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("after", ["disk_reader", "pinned_stager", "gpu_uploader"])
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_host_work_may_be_started_behind_any_actor(after: str, device: str) -> None:
    async with Model.open() as plain, Model.open(device=device, insert={after: [Lazy()]}) as model:
        expected = await plain.generate(PROMPT, max_new_tokens=3)
        assert await model.generate(PROMPT, max_new_tokens=3) == expected


async def test_closing_while_a_stage_fails_does_not_hang() -> None:
    class Trip(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                raise ValueError("clean-up failed") from None
            return message

    for milliseconds in (0, 5, 30):
        model = await Model.open(insert={"disk_reader": [Trip()]})
        await asyncio.sleep(milliseconds / 1000)
        async with asyncio.timeout(10):
            await model.aclose()


async def test_every_close_waits_and_a_cancelled_one_goes_on() -> None:
    before = len(os.listdir("/proc/self/fd"))
    model = await Model.open()
    call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=500))
    await asyncio.sleep(0.02)
    first = asyncio.create_task(model.aclose())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.gather(model.aclose(), model.aclose())
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ClosedError):
        await call


async def test_another_loop_and_a_shared_stage_are_refused() -> None:
    look = Look()
    async with Model.open(insert={"disk_reader": [look]}) as model:
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(model.generate(PROMPT, max_new_tokens=1))
            except RequestError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert "another event loop" in str(errors[0])
        async with Model.open(insert={"disk_reader": [look]}) as second:
            with pytest.raises(Exception, match="look is at work in a running line"):
                await second.generate(PROMPT, max_new_tokens=1)
        assert (await model.generate(PROMPT, max_new_tokens=1)).token_ids


async def test_a_permanent_failure_does_not_spin() -> None:
    runs = [0]

    class Broken(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            runs[0] += 1
            raise ValueError("always")

    async with Model.open(insert={"disk_reader": [Broken()]}) as model:
        await asyncio.sleep(0.2)
        with pytest.raises(ActorFailed):
            await model.generate(PROMPT, max_new_tokens=1)
        await asyncio.sleep(0.2)
    assert runs[0] <= 3


def test_ready_is_done() -> None:
    assert READY.done()
    assert READY.error is None
