"""The model as its users see it."""

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models

import pipeline.api as api
from actors.core.event import Event
from pipeline import (
    ActorFailed,
    CheckpointError,
    ClosedError,
    Message,
    Model,
    RequestError,
    Slot,
    Stage,
)

PROMPT = "class Stack:\n"


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    async with Model.open(device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_tied", folder, shards=2)
    return folder


async def test_generate_returns_text_tokens_and_reason(model: Model) -> None:
    output = await model.generate(PROMPT, max_new_tokens=12, logprobs=3)
    assert len(output.token_ids) == 12
    assert output.finish_reason == "length"
    assert output.prompt_token_ids[0] == 4094
    assert list(output.prompt_token_ids) == model.tokenizer.encode(PROMPT)
    assert model.tokenizer.count(PROMPT) == len(output.prompt_token_ids)
    assert model.tokenizer.decode(output.token_ids) == output.text != ""
    assert output.logprobs is not None
    assert len(output.logprobs) == 12
    for token_id, logprobs in zip(output.token_ids, output.logprobs, strict=True):
        assert len(logprobs) == 3
        assert logprobs[token_id] == max(logprobs.values())
        assert all(value <= 0 for value in logprobs.values())


async def test_awaiting_open_works_like_entering_it() -> None:
    model = await Model.open()
    output = await model.generate([4094, 10, 11], max_new_tokens=2)
    assert output.prompt_token_ids == (4094, 10, 11)
    await model.aclose()
    await model.aclose()
    with pytest.raises(ClosedError):
        await model.generate(PROMPT)


async def test_a_stream_gives_one_chunk_per_token_and_the_same_text(model: Model) -> None:
    whole = await model.generate(PROMPT, max_new_tokens=20)
    chunks = [chunk async for chunk in model.stream(PROMPT, max_new_tokens=20)]
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 20
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token_id for chunk in chunks for token_id in chunk.token_ids) == whole.token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * 19 + ["length"]


async def test_stop_strings_and_stop_ids_end_a_request(model: Model) -> None:
    whole = await model.generate(PROMPT, max_new_tokens=40)
    marker = whole.text[10:14]
    stopped = await model.generate(PROMPT, max_new_tokens=40, stop=[marker])
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(marker)]
    third = whole.token_ids[2]
    by_id = await model.generate(PROMPT, max_new_tokens=40, stop_token_ids=[third])
    assert by_id.finish_reason == "stop"
    assert by_id.token_ids == whole.token_ids[: whole.token_ids.index(third) + 1]


async def test_a_seed_repeats_and_sampling_differs_from_greedy(model: Model) -> None:
    arguments = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 0.9}
    first = await model.generate(PROMPT, seed=3, **arguments)
    again = await model.generate(PROMPT, seed=3, **arguments)
    other = await model.generate(PROMPT, seed=4, **arguments)
    assert first.token_ids == again.token_ids != other.token_ids


async def test_calls_at_once_are_served_in_order_and_each_as_if_alone(model: Model) -> None:
    prompts = ["import ", "def add(", "for i in ", "class A", "return "]
    alone = [await model.generate(prompt, max_new_tokens=6) for prompt in prompts]
    finished: list[int] = []

    async def one(index: int) -> object:
        output = await model.generate(prompts[index], max_new_tokens=6)
        finished.append(index)
        return output

    together = await asyncio.gather(*map(one, range(5)))
    assert together == alone
    assert finished == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("everything_moves")
async def test_cancelling_at_many_moments_frees_the_line_for_the_next_call(model: Model) -> None:
    expected = await model.generate(PROMPT, max_new_tokens=4)
    for milliseconds in (0, 1, 3, 7, 15, 30):
        call = asyncio.create_task(model.generate("import os\n" * 20, max_new_tokens=200))
        waiting = asyncio.create_task(model.generate("never computed", max_new_tokens=200))
        await asyncio.sleep(milliseconds / 1000)
        call.cancel()
        waiting.cancel()
        results = await asyncio.gather(call, waiting, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert await model.generate(PROMPT, max_new_tokens=4) == expected


async def test_an_abandoned_stream_does_not_block_the_next_call(model: Model) -> None:
    async for _ in model.stream(PROMPT, max_new_tokens=500):
        break
    gc.collect()
    async with asyncio.timeout(20):
        await model.generate(PROMPT, max_new_tokens=2)


async def test_closing_ends_running_requests_and_gives_everything_back() -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = handles()
    model = await Model.open()
    call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=500))
    await asyncio.sleep(0.05)
    assert handles() > before
    await model.aclose()
    with pytest.raises(ClosedError, match="closed before the request had finished"):
        await call
    assert handles() == before
    assert [budget.statistics().held for budget in model.runtime.line.budgets] == [0]
    (host,) = model.runtime.line.budgets
    stayed = await host.acquire("ffn", model.runtime.catalog.order[1])
    assert stayed.buffer.tensor.numel() == 0


@pytest.mark.usefixtures("everything_moves")
async def test_a_failing_stage_reaches_every_caller_and_later_requests_work() -> None:
    class Trip(Stage):
        armed = False

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            if self.armed and (message.layer, message.group) == (3, "ffn"):
                self.armed = False
                raise OSError(5, "Input/output error")
            return message

    trip = Trip()
    async with Model.open(insert={"disk_reader": [trip]}) as model:
        expected = await model.generate(PROMPT, max_new_tokens=3)
        trip.armed = True
        calls = [model.generate(PROMPT, max_new_tokens=30) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            assert isinstance(result, ActorFailed)
            assert (result.actor, result.layer, result.group) == ("trip", 3, "ffn")
            assert isinstance(result.__cause__, OSError)
        assert await model.generate(PROMPT, max_new_tokens=3) == expected


@pytest.mark.usefixtures("everything_moves")
async def test_weights_that_change_under_a_running_model_are_noticed(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    async with Model.open(tmp_path) as model:
        await model.generate([1, 2, 3], max_new_tokens=2)
        shard = next(tmp_path.glob("*.safetensors"))
        os.truncate(shard, shard.stat().st_size // 2)
        with pytest.raises(ActorFailed, match="truncated while running"):
            await model.generate([1, 2, 3], max_new_tokens=20)


async def test_a_folder_without_tokenizer_serves_token_ids(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="penstock"):
        async with Model.open(checkpoint) as model:
            output = await model.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True)
            assert output.text == ""
            assert len(output.token_ids) == 4
            with pytest.raises(CheckpointError, match=r"has no tokenizer \(tokenizer.json, .*take token ids"):
                model.tokenizer.count("text")
            with pytest.raises(RequestError, match="the folder has none; give token ids"):
                await model.generate("text")
            with pytest.raises(RequestError, match="use stop_token_ids"):
                await model.generate([1], stop="x")
    assert "has no tokenizer" in caplog.text


async def test_the_log_tells_on_demand_how_a_model_was_opened(caplog: pytest.LogCaptureFixture) -> None:
    opened = ("reads", "checksums", "24 of 24 weight", "kv room", "pass size up to")
    for level, told in ((logging.WARNING, ()), (logging.INFO, opened)):
        caplog.clear()
        caplog.set_level(level, logger="penstock")
        async with Model.open(device="cpu", dtype="float32", residency=False):  # of bf16 some CPUs make numba speak
            messages = [record.getMessage() for record in caplog.records if record.name == "penstock"]
        assert len(messages) == len(told)
        assert all(one.startswith(words) for one, words in zip(messages, told, strict=True)), messages


@pytest.mark.usefixtures("everything_moves")
async def test_statistics_tell_what_moved(model: Model) -> None:
    await model.generate(PROMPT, max_new_tokens=10)
    record = model.statistics().as_dict()
    assert (record["passes"], record["tokens"]) == (10, 10)
    assert 1 <= record["host_groups_peak"] <= record["device_groups_peak"] <= 4
    assert record["bytes_needed"] >= 10 * model.runtime.catalog.needed_bytes
    assert record["bytes_read"] >= record["bytes_needed"]
    names = {"prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler"}
    assert set(record["busy_seconds"]) == set(record["stalled_seconds"]) == names
    assert set(record["channels"]) == names - {"prefetch_planner"}
    assert {"depth", "peak", "starved_seconds", "blocked_seconds"} < set(record["channels"]["disk_reader"])
    assert record["busy_seconds"]["disk_reader"] > 0
    assert record["busy_seconds"]["compute_scheduler"] > 0


@pytest.mark.usefixtures("everything_moves")
async def test_groups_that_nobody_needs_are_not_counted_as_computing() -> None:
    async with Model.open(device="cpu-copy", max_tokens_per_pass=1) as model:
        launched = model.runtime.device.launch
        lanes: list[str] = []

        def note(lane: str, *arguments: Any, **options: Any) -> Event:
            lanes.append(lane)
            return launched(lane, *arguments, **options)

        model.runtime.device.launch = note  # type: ignore[method-assign]
        await model.generate([1, 2, 3], max_new_tokens=1)
        groups = len(model.runtime.catalog.order)
        heads = sum(group.startswith("head") for _, group in model.runtime.catalog.order)
        assert len(lanes) == 3 * (1 + groups) - 2 * heads + 1, "only the last of three prefill passes chooses a token"
        assert model.statistics().passes == 3


async def test_a_few_more_lines_can_run_beside_each_other() -> None:
    async with Model.open() as first, Model.open(gpu_groups=2) as second:
        outputs = await asyncio.gather(*(one.generate(PROMPT, max_new_tokens=5) for one in (first, second)))
        assert outputs[0] == outputs[1]


@pytest.mark.parametrize("step", ["build", "read_tokenizer", "rehearse"])
async def test_cancelling_open_half_way_leaves_nothing_open(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, entered = getattr(api, step), threading.Event()

    def slow(*arguments: Any) -> Any:
        entered.set()
        time.sleep(0.05)
        return inner(*arguments)

    async def endless(*arguments: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(api, step, endless if step == "rehearse" else slow)
        for _ in range(3):
            entered.clear()
            opening = asyncio.ensure_future(Model.open())
            while not entered.is_set():
                await asyncio.sleep(0.001)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("penstock")]
    assert len(os.listdir("/proc/self/fd")) == before
    async with Model.open() as model:
        assert (await model.generate(PROMPT, max_new_tokens=1)).token_ids
