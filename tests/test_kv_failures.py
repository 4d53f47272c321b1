"""What fails while KV blocks move is told to every caller by actor, layer and group; then everything works again."""

import asyncio
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.kv_places import settings_with_room

from actors.core.ports import Copy
from pipeline import ActorFailed, ClosedError, Model
from pipeline.devices import cpu
from pipeline.devices.memory import Memory
from pipeline.models import decoder
from pipeline.sequences.spill_file import SpillFile
from pipeline.weights.source import WeightSource

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS = 6
SETTINGS: dict[str, Any] = {"context_tokens": 64, "kv_tokens": 192, "max_tokens_per_pass": 48}
DRAW = random.Random(5)
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(count)] for count in (20, 33, 5)]
PLACES = {"device": "cpu-copy", "device_layers": 4, "host_layers": 4}
Answers = list[tuple[int, ...]]
Break = Callable[[Model, pytest.MonkeyPatch, list[int]], None]
"""Lets something fail for as long as the list holds anything; each failure takes one out."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)


def calls(model: Model) -> list[asyncio.Task[tuple[int, ...]]]:
    async def one(prompt: list[int]) -> tuple[int, ...]:
        return (await model.generate(prompt, max_new_tokens=5, ignore_eos=True)).token_ids

    return [asyncio.create_task(one(prompt)) for prompt in PROMPTS]


async def answers(model: Model) -> Answers:
    return await asyncio.gather(*calls(model))


def at_baseline(model: Model, tasks: set[Any]) -> None:
    """The lines have stopped: nobody holds a block or a slot, and nothing runs but the supervisor."""
    assert model.statistics().kv_blocks.used == 0
    budgets = [budget for line in model.runtime.wired.lines for budget in line.budgets]
    assert {budget.name: budget.statistics().held for budget in budgets} == dict.fromkeys(
        ("host", "device", "kv host", "kv device"), 0
    )
    assert {task.get_name() for task in asyncio.all_tasks() - tasks} == {"penstock"}


def broken(work: Callable[..., Any], left: list[int], fails: Callable[..., bool] = lambda *_: True) -> Any:
    def working(*arguments: Any) -> Any:
        if left and fails(*arguments):
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        return work(*arguments)

    return working


def reading(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    monkeypatch.setattr(SpillFile, "_read", broken(SpillFile._read, left))


def writing(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    monkeypatch.setattr(SpillFile, "_write", broken(SpillFile._write, left))


def corrupting(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    pwritev = os.pwritev

    def flipping(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = pwritev(descriptor, buffers, offset)
        if left:
            left.pop()
            with open(f"/proc/self/fd/{descriptor}", "r+b", buffering=0) as file:
                os.pwrite(file.fileno(), bytes([buffers[0][70] ^ 1]), offset + 70)
        return count

    monkeypatch.setattr(os, "pwritev", flipping)


def copying(way: str) -> Break:
    def breaks(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
        cache = model.runtime.cache
        cells = cache.device_cells if way == "D2H" else cache.host_cells
        sources = [memory for some in cells.values() for memory in some]

        def is_kv(source: Memory, target: Memory, copies: list[Copy]) -> bool:
            return any(source is one for one in sources)

        monkeypatch.setattr(cpu, "copy_bytes", broken(cpu.copy_bytes, left, is_kv))

    return breaks


def attending(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    monkeypatch.setattr(decoder, "attention_half", broken(decoder.attention_half, left))


def reading_weights(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    read_into = WeightSource.read_into

    async def failing(self: WeightSource, layer: int, group: str, buffer: Any) -> None:
        if left and (layer, group) == (4, "ffn"):
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        await read_into(self, layer, group, buffer)

    monkeypatch.setattr(WeightSource, "read_into", failing)


EIO = r"Input/output error"
CASES = [
    pytest.param(reading, rf"kv_reader failed at layer [1-5] group 'kv'.*{EIO}", id="read"),
    pytest.param(corrupting, r"kv_reader failed at layer [1-5] group 'kv'.*checksum.*put kv_disk elsewhere", id="sum"),
    pytest.param(writing, rf"kv_swapper failed at layer [1-5] group 'kv'.*{EIO}", id="write"),
    pytest.param(copying("D2H"), rf"kv_swapper failed at layer [1-5] group 'kv'.*{EIO}", id="D2H"),
    pytest.param(copying("H2D"), rf"kv_uploader failed at layer [1-5] group 'kv'.*{EIO}", id="H2D"),
    pytest.param(attending, rf"compute_scheduler failed at layer 0 group 'attn'.*{EIO}", id="attention"),
    pytest.param(reading_weights, rf"disk_reader failed at layer 4 group 'ffn'.*{EIO}", id="weights"),
]


@pytest.mark.parametrize(("breaks", "says"), CASES)
async def test_every_caller_hears_of_it_and_the_next_request_works(
    breaks: Break, says: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(30):
        before = asyncio.all_tasks()
        async with Model.open(checkpoint, **settings_with_room(checkpoint, tmp_path, **PLACES, **SETTINGS)) as model:
            expected = await answers(model)
            left: list[int] = []
            breaks(model, monkeypatch, left)
            for times in (1, 1000):
                left.extend([1] * {reading: 1000}.get(breaks, times))  # reads are tried twice
                failures = await asyncio.gather(*calls(model), return_exceptions=True)
                left.clear()
                assert all(isinstance(failure, ActorFailed) for failure in failures), failures
                assert len({id(failure) for failure in failures}) == 1, "one failure, told to all"
                with pytest.raises(ActorFailed, match=says):
                    raise failures[0]
                await asyncio.sleep(0)
                at_baseline(model, before)
                assert await answers(model) == expected


async def test_a_read_is_tried_once_more(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Model.open(checkpoint, **settings_with_room(checkpoint, tmp_path, **PLACES, **SETTINGS)) as model:
        expected = await answers(model)
        left: list[int] = []
        reading(model, monkeypatch, left)
        left.append(1)
        assert await answers(model) == expected
        assert not left
        assert "failed, trying once more: " in caplog.text


@pytest.mark.parametrize("device", ["cpu-copy", "cpu"])
async def test_cancelled_or_closed_at_any_moment_while_blocks_move(
    device: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Between any two steps of the event loop: the others answer, and the next requests do."""
    settings = settings_with_room(checkpoint, tmp_path, **{**PLACES, "device": device}, **SETTINGS)
    descriptors = len(os.listdir("/proc/self/fd"))
    async with asyncio.timeout(60):
        model = await Model.open(checkpoint, **settings)
        expected = await answers(model)
        for steps in (*range(0, 60, 4), *range(60, 600, 60)):
            running = calls(model)
            for _ in range(steps):
                await asyncio.sleep(0)
            gone = steps % len(running)
            running[gone].cancel()
            outcomes = await asyncio.gather(*running, return_exceptions=True)
            for index, outcome in enumerate(outcomes):
                assert outcome == expected[index] or (index == gone and isinstance(outcome, asyncio.CancelledError))
            assert model.statistics().kv_blocks.used == 0
        await model.aclose()
        for steps in (0, 5, 40, 150, 400):
            model = await Model.open(checkpoint, **settings)
            running = calls(model)
            for _ in range(steps):
                await asyncio.sleep(0)
            await model.aclose()
            outcomes = await asyncio.gather(*running, return_exceptions=True)
            assert all(isinstance(one, ClosedError) or one in expected for one in outcomes)
            held = [budget.statistics().held for line in model.runtime.wired.lines for budget in line.budgets]
            assert not any(held)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert list(tmp_path.iterdir()) == []
