"""A failure ends as few requests as it can: those that wait keep their places, those that ran get the same tokens."""

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import EVERYTHING, in_turn
from support.kv_places import settings_with_room
from support.small_checkpoints import write_small_checkpoint

from pipeline import ActorFailed, ClosedError, Model, PenstockError, RequestError
from pipeline.generation import row_sampler
from pipeline.models import decoder
from pipeline.reading.rows import RowReader
from pipeline.reading.source import CheckpointSource
from pipeline.system.threads import outlast

pytestmark = pytest.mark.usefixtures("everything_moves", "nothing_was_there_before")
SETTINGS: dict[str, Any] = {"device": "cpu-copy", "context_tokens": 48, "kv_tokens": 240, "max_tokens_per_pass": 24}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.2}
MOST_UNREAD = 2
BAD = 77
Tokens = tuple[int, ...]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domain") / "model"
    write_small_checkpoint(folder, "llama-3-8b", torch.float32, layers=5)
    return folder


@pytest.fixture(autouse=True)
def few_may_lie_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.answering.MOST_UNREAD", MOST_UNREAD)


async def tokens(model: Model, prompt: list[int], count: int = 8, **arguments: Any) -> Tokens:
    return (await model.generate(prompt, max_new_tokens=count, ignore_eos=True, **arguments)).token_ids


async def samples(model: Model) -> Tokens:
    """Three that share their prompt."""
    arguments = {**SAMPLED, "max_new_tokens": 5, "ignore_eos": True}
    outputs = await model.generate([7] * 18, n=3, **arguments)
    return tuple(token_id for output in outputs for token_id in output.token_ids)


async def slowly(model: Model) -> Tokens:
    """A stream that pauses in between."""
    read: list[int] = []
    async with contextlib.aclosing(model.stream([6, 3, 9], max_new_tokens=8, ignore_eos=True, **SAMPLED)) as chunks:
        async for chunk in chunks:
            read += chunk.token_ids
            if len(read) == 2:
                await asyncio.sleep(0.03)
    return tuple(read)


def everybody(model: Model) -> list[Coroutine[Any, Any, Tokens]]:
    """More than run at a time, of all kinds; the second prompt takes two passes."""
    return [
        tokens(model, [5, 9, 1]),
        tokens(model, list(range(30))),
        tokens(model, [8, 2], **SAMPLED),
        samples(model),
        slowly(model),
        *(tokens(model, [index, 4], count=3, cache_scope="a") for index in range(4)),
    ]


def broken(work: Callable[..., Any], left: list[int]) -> Any:
    """Fails at the call with the number in `left`, counted down."""

    def working(*arguments: Any, **named: Any) -> Any:
        if left:
            left[0] -= 1
            if left[0] < 0:
                left.clear()
                raise ValueError("failed once")
        return work(*arguments, **named)

    return working


def break_at(what: str, model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    if what == "read":
        monkeypatch.setattr(CheckpointSource, "read_into", broken(CheckpointSource.read_into, left))
    elif what == "compute":
        monkeypatch.setattr(decoder, "ffn_half", broken(decoder.ffn_half, left))
    else:
        monkeypatch.setattr(model.runtime.device, "upload", broken(model.runtime.device.upload, left))


@pytest.mark.parametrize(("policy", "places"), in_turn(["stage3", "backpressure"], ["device", "host and disk"]))
async def test_whatever_fails_once_everybody_gets_the_same_tokens(
    policy: str, places: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "policy": policy, "max_requests": 4, "residency": False}
    if places != "device":
        settings = settings_with_room(checkpoint, tmp_path, device_layers=3, host_layers=3, **settings)
    async with asyncio.timeout(50), Model.open(checkpoint, **settings) as model:
        placement = model.runtime.cache.memory.placement
        counts = [len(layers) for layers in (placement.device, placement.host, placement.disk)]
        assert counts == ([5, 0, 0] if places == "device" else [1, 1, 3])
        expected = await asyncio.gather(*everybody(model))
        for what in ("read", "compute", "upload"):
            for when in (0, 9, 25) if EVERYTHING else (0, 25):
                left = [when]
                with monkeypatch.context() as patched:
                    break_at(what, model, patched, left)
                    assert await asyncio.gather(*everybody(model)) == expected, (what, when)
                assert not left
                requests = model.statistics().requests
                assert (requests.failed, requests.running, requests.waiting) == (0, 0, 0)
                assert model.statistics().kv_blocks.used == 0


def bad_row(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has lost the embedding of one token."""
    read, embedding = RowReader.read, model.runtime.embedding
    bad = embedding.parts[0].starts([BAD])[0]

    async def failing(self: RowReader, file: Path, starts: list[int], *arguments: Any) -> None:
        if bad in starts:
            raise OSError(errno.EIO, "Input/output error")
        await read(self, file, starts, *arguments)

    monkeypatch.setattr(RowReader, "read", failing)


async def test_a_row_that_cannot_be_read_ends_those_who_need_it_and_they_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(30), Model.open(checkpoint, **SETTINGS, max_requests=3) as model:
        good = [[5, 9, 1], [8, 2], [9], [1, 1], [4]]
        expected = [await tokens(model, prompt) for prompt in good]
        assert not any(BAD in answer for answer in expected)
        bad_row(model, monkeypatch)
        crew = model.runtime.line._crew
        calls = [asyncio.create_task(tokens(model, prompt)) for prompt in good]
        for prompt in ([BAD], [5, BAD, 3], [9] * 30 + [BAD]):
            with pytest.raises(RequestError, match=f"row of token {BAD} cannot be read: OSError.*Input/output error"):
                await tokens(model, prompt, priority=-1)
        assert await asyncio.gather(*calls) == expected
        with pytest.raises(RequestError):
            await tokens(model, [BAD])  # alone
        assert model.runtime.line._crew is crew, "the line has not been run anew"
        assert model.statistics().requests.failed == 4


async def test_those_that_wait_get_their_turn_when_those_that_run_are_told(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5, 9, 1], [8, 2], [9], [1, 1], [4]]
    async with asyncio.timeout(30), Model.open(checkpoint, **SETTINGS, max_requests=2) as model:
        expected = [await tokens(model, prompt) for prompt in prompts]
        for failures in (2, 3):
            ffn_half, left = decoder.ffn_half, [1] * failures

            def failing(*arguments: Any, half: Any = ffn_half, left: list[int] = left) -> Any:
                if left:
                    left.pop()
                    raise ValueError("the kernel failed")
                return half(*arguments)

            with monkeypatch.context() as patched:
                patched.setattr(decoder, "ffn_half", failing)
                outcomes = await asyncio.gather(*(tokens(model, one) for one in prompts), return_exceptions=True)
            told = 2 * (failures - 1)  # the second failure tells two, each one behind it two more
            assert all(isinstance(outcome, ActorFailed) for outcome in outcomes[:told])
            assert outcomes[told:] == expected[told:]


async def test_a_line_that_cannot_be_stopped_is_waited_for_by_those_alone_whose_turn_has_not_come(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, ways, read_into = threading.Event(), ["", ""], CheckpointSource.read_into
    hung: list[asyncio.Future[bool]] = []

    async def reading(self: CheckpointSource, *arguments: Any) -> None:
        if ways and (way := ways.pop()) == "hangs":
            hung.append(asyncio.get_running_loop().run_in_executor(None, gate.wait, 20))
            await outlast(hung)
        elif ways and way == "fails":
            ways.clear()
            raise ValueError("failed")
        await read_into(self, *arguments)

    monkeypatch.setattr(CheckpointSource, "read_into", reading)
    settings = {**SETTINGS, "max_requests": 1, "residency": False}
    async with asyncio.timeout(30), Model.open(checkpoint, **settings) as model:
        expected = await tokens(model, [8, 2])
        running, waiting = (asyncio.create_task(tokens(model, prompt)) for prompt in ([5, 9], [8, 2]))
        ways[:] = ["", "fails", "hangs"]
        with pytest.raises(ActorFailed, match="disk_reader failed"):
            await running
        assert [one.done() for one in hung] == [False]
        await asyncio.sleep(0.1)
        assert (waiting.done(), model.statistics().requests.waiting) == (False, 1)
        gate.set()
        assert await waiting == expected


async def test_a_token_that_is_drawn_while_the_line_is_stopped_is_drawn_once_more_and_is_the_same(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, choose, drawn = asyncio.get_running_loop(), row_sampler.choose, [0]

    def choosing(*arguments: Any) -> torch.Tensor:
        drawn[0] += 1
        if drawn[0] % 3 == 2:
            loop.call_soon_threadsafe(stop_one)
            time.sleep(0.05)
        return choose(*arguments)

    def stop_one() -> None:
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "disk_reader"]
        task.cancel()

    penalties = {"frequency_penalty": 0.5, "no_repeat_ngram_size": 2}
    async with asyncio.timeout(30), Model.open(checkpoint, **SETTINGS) as model:
        expected = await tokens(model, [8, 2], **SAMPLED, **penalties)
        monkeypatch.setattr(row_sampler, "choose", choosing)
        assert await tokens(model, [8, 2], **SAMPLED, **penalties) == expected
        assert drawn[0] > len(expected)


@pytest.mark.parametrize("end", ["drained", "closed", "cancelled", "read on"])
async def test_one_that_has_paused_outlasts_a_failure(
    end: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(30), Model.open(checkpoint, **SETTINGS, residency=False) as model:
        arguments = {**SAMPLED, "max_new_tokens": 8, "ignore_eos": True}
        expected = [chunk async for chunk in model.stream([6, 3, 9], **arguments)]
        async with contextlib.aclosing(model.stream([6, 3, 9], **arguments)) as unread:
            read = [await anext(unread)]
            while model.runtime.admission.batcher.wanted or model.runtime.admission.in_pass:
                await asyncio.sleep(0.001)
            other = asyncio.create_task(tokens(model, [5, 9, 1]))
            left = [2]
            break_at("compute", model, monkeypatch, left)
            while left:
                await asyncio.sleep(0)
            if end == "cancelled":
                other.cancel()
            elif end in ("drained", "closed"):
                await model.aclose(drain=end == "drained")
            told: list[type[Exception]] = []
            try:
                async for chunk in unread:
                    read.append(chunk)
            except PenstockError as error:
                told.append(type(error))
        if end == "closed":
            assert (read, told) == (expected[: 1 + MOST_UNREAD], [ClosedError])
        else:
            assert (read, told) == (expected, [])
        (outcome,) = await asyncio.gather(other, return_exceptions=True)
        assert isinstance(outcome, {"cancelled": asyncio.CancelledError, "closed": ClosedError}.get(end, tuple))
