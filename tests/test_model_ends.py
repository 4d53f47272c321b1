"""Every end of a model's tasks and loops is watched: callers are told, and closing gives everything back."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.events import LostEvent

from actors.core.errors import LineError
from pipeline import ActorFailed, ClosedError, Message, Model, Slot, Stage

pytestmark = pytest.mark.usefixtures("everything_moves")
PROMPT = "class Stack:\n"


class Panic(BaseException):
    """As bindings to other languages raise it: no `Exception`."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("actors.core.crew", "actors.core.line", "pipeline.engine.supervisor"):
        monkeypatch.setattr(f"{module}.STOP_SECONDS", 0.05)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("penstock")]


async def opened(**settings: Any) -> Model:
    model = await Model.open(device="cpu", **settings)
    await model.generate(PROMPT, max_new_tokens=1)
    return model


async def test_a_panic_in_a_stage_reaches_its_caller_and_the_next_call_works() -> None:
    class Panics(Stage):
        armed = False

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            if self.armed:
                self.armed = False
                raise Panic("in Rust")
            return message

    stage = Panics()
    async with asyncio.timeout(20), Model.open(device="cpu", insert={"disk_reader": [stage]}) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=200, ignore_eos=True))
        while not model.statistics().requests.running:
            await asyncio.sleep(0.001)
        stage.armed = True
        with pytest.raises(ActorFailed, match=r"panics failed at layer \d+.*Panic: in Rust"):
            await call
        assert await model.generate(PROMPT, max_new_tokens=2) == expected


async def test_when_all_tasks_are_cancelled_callers_are_told_and_later_ones_too() -> None:
    before = asyncio.all_tasks()
    model = await opened()
    async with asyncio.timeout(20):
        call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=500, ignore_eos=True))
        await asyncio.sleep(0.05)
        for task in asyncio.all_tasks() - before - {call}:
            task.cancel()
        with pytest.raises(ClosedError, match="its task was cancelled"):
            await call
        with pytest.raises(ClosedError, match="its task was cancelled"):
            await model.generate(PROMPT, max_new_tokens=1)
        await model.aclose()
        with pytest.raises(ClosedError, match="is closed"):
            await model.generate(PROMPT, max_new_tokens=1)
    assert threads() == []


async def test_an_error_of_the_supervisor_itself_reaches_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = await opened()
    async with asyncio.timeout(20):
        monkeypatch.setattr(model.runtime.admission, "wanted", lambda: 1 / 0)
        call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=500, ignore_eos=True))
        await asyncio.sleep(0.05)
        next(task for task in asyncio.all_tasks() if task.get_name() == "disk_reader").cancel()
        with pytest.raises(ClosedError, match="ZeroDivisionError"):
            await call
        with pytest.raises(ClosedError, match="ZeroDivisionError"):
            await model.generate(PROMPT, max_new_tokens=1)
        await model.aclose()
    assert threads() == []


@pytest.mark.parametrize("name", ["penstock", "prefetch_planner", "disk_reader", "compute_scheduler"])
async def test_any_task_may_be_cancelled_alone(name: str) -> None:
    async with asyncio.timeout(20), Model.open(device="cpu") as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        for _ in range(2):
            next(task for task in asyncio.all_tasks() if task.get_name() == name).cancel()
            await asyncio.sleep(0)
            if name == "penstock":
                with pytest.raises(ClosedError):
                    await model.generate(PROMPT, max_new_tokens=2)
                break
            assert await model.generate(PROMPT, max_new_tokens=2) == expected


def test_a_model_whose_loop_has_gone_is_closed_from_another_one() -> None:
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        model = asyncio.run(opened())
        assert threads() != []
        for _ in range(2):
            asyncio.run(model.aclose())
        assert threads() == []
    assert len(os.listdir("/proc/self/fd")) <= files + 1


def test_a_model_is_closed_from_another_loop_while_its_own_runs_in_a_thread() -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def there(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop)

    model: Model = there(opened()).result(20)
    call = there(model.generate(PROMPT, max_new_tokens=500, ignore_eos=True))

    async def main() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(model.aclose(), model.aclose())

    asyncio.run(main())
    with pytest.raises(ClosedError):
        call.result(10)
    there(model.aclose()).result(10)
    assert threads() == []
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("steps", range(12))
async def test_closing_that_is_cancelled_at_any_step_can_be_called_again(steps: int) -> None:
    before = asyncio.all_tasks()
    model = await opened()
    closing = asyncio.create_task(model.aclose())
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    async with asyncio.timeout(10):
        await model.aclose()
    assert threads() == []


async def test_an_event_that_never_ends_keeps_neither_callers_nor_closing() -> None:
    class Forever(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            if message.seq < 30:
                return message
            return message.moved(message.at, self.start(message, self.forever()))

        async def forever(self) -> None:
            await asyncio.Event().wait()

    async with asyncio.timeout(20):
        async with Model.open(device="cpu", insert={"disk_reader": [Forever()]}) as model:
            calls = [asyncio.create_task(model.generate(PROMPT, max_new_tokens=50, ignore_eos=True)) for _ in range(2)]
            await asyncio.sleep(0.3)
            calls[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await calls[0]
            assert not calls[1].done()
        with pytest.raises(ClosedError):
            await calls[1]
    assert threads() == []


async def test_a_stage_that_does_not_end_is_named_by_who_closes_and_everything_else_is_given_back(
    impatient: None,
) -> None:
    class Stubborn(Stage):
        stopped = entered = False

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            while message.seq > 30 and not self.stopped:
                self.entered = True
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    continue
            return message

    stage = Stubborn()
    async with asyncio.timeout(20):
        model = await Model.open(device="cpu", insert={"disk_reader": [stage]})
        call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=50, ignore_eos=True))
        while not stage.entered:
            await asyncio.sleep(0.01)
        with pytest.raises(ActorFailed, match=r"stubborn failed at layer \d+.*has not ended within") as failed:
            await model.aclose()
        with pytest.raises(ClosedError):
            await call
        left, stage.stopped = threads(), True
        assert left == []
        assert "within 0.05 s" in str(failed.value)
        await asyncio.sleep(0.05)
        await model.aclose()


class Log(Stage):
    """Starts work that has nothing to do with the bytes."""

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        return message.moved(message.at, self.start(message, self.log()))

    async def log(self) -> None:
        pass


@pytest.mark.parametrize(
    ("after", "device"), [("disk_reader", "cpu"), ("disk_reader", "cpu-copy"), ("gpu_uploader", "cpu-copy")]
)
async def test_work_of_a_stage_beside_the_bytes_changes_no_token(
    after: str, device: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=4)
    async with Model.open(folder, device=device) as model:
        expected = await model.generate([5, 9, 1], max_new_tokens=6, ignore_eos=True)
    async with Model.open(folder, device=device, insert={after: [Log()]}) as model:
        assert await model.generate([5, 9, 1], max_new_tokens=6, ignore_eos=True) == expected


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_bytes_are_not_given_before_they_are_there(device: str) -> None:
    told: dict[str, str] = {}

    class Reads(Stage):
        def __init__(self, name: str, waits: bool) -> None:
            self.name = name
            self.waits = waits

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            if self.waits:
                await self.landed(message)
            if self.waits and message.at is not None:
                with pytest.raises(LineError, match=r"still on their way to host slot \d+: await self.landed"):
                    self.catalog.tensors(message.moved(message.at, LostEvent()))
            try:
                tensors: Any = self.catalog.tensors(message)
                with pytest.raises(TypeError):
                    tensors["q_proj.weight"] = None
                told[self.name] = "read"
            except LineError as error:
                told.setdefault(self.name, str(error))
            return message

    insert = {"prefetch_planner": [Reads("ahead", True)], "disk_reader": [Reads("waits", True)]}
    async with Model.open(device=device, insert=insert):
        pass
    assert told["ahead"].startswith("layer 0 group 'attn' has no bytes yet")
    assert told["waits"] == "read"


@pytest.mark.parametrize("after", ["disk_reader", "gpu_uploader"])
async def test_work_that_a_device_runs_behind_the_bytes_may_read_them(after: str) -> None:
    class Sums(Stage):
        device: Any = None
        sums = 0

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            if self.device is None or after == "disk_reader":
                await self.landed(message)
            if self.device is None:
                return message

            def work() -> None:
                self.sums += len(self.catalog.tensors(message))

            return message.moved(message.at, self.device.launch("sums", work, (message.event,)))

    stage = Sums()
    async with Model.open(device="cpu-copy", insert={after: [stage]}) as model:
        expected = await model.generate(PROMPT, max_new_tokens=2)
        stage.device = model.runtime.device
        assert await model.generate(PROMPT, max_new_tokens=2) == expected
    assert stage.sums > 10
