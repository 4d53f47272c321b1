"""What fails while KV blocks move ends whose blocks they are, or runs the lines anew; then everything works again."""

import asyncio
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING
from support.kv_places import settings_with_room

from actors.core.message import GroupKey
from actors.core.ports import Copy
from pipeline import ActorFailed, ClosedError, Model
from pipeline.devices import cpu
from pipeline.devices.memory import Memory
from pipeline.generation.sequence import RunningSequence
from pipeline.models import decoder
from pipeline.reading.source import CheckpointSource
from pipeline.state.spill_file import Region, SpillFile

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


async def at_baseline(model: Model, tasks: set[Any]) -> None:
    """The lines have stopped: nobody holds a block or a slot, and nothing runs but the supervisor."""
    while len(asyncio.all_tasks() - tasks) > 1:
        await asyncio.sleep(0)
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


def copying(way: str) -> Break:
    def breaks(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
        kv_memory = model.runtime.cache.memory
        in_host = [memory for some in kv_memory.host_cells.values() for memory in some]
        sources = kv_memory.device_cells if way == "D2H" else in_host

        def is_kv(source: Memory, target: Memory, copies: list[Copy]) -> bool:
            return any(source is one for one in sources)

        monkeypatch.setattr(cpu, "copy_bytes", broken(cpu.copy_bytes, left, is_kv))

    return breaks


def attending(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    monkeypatch.setattr(decoder, "attention_half", broken(decoder.attention_half, left))


def reading_weights(model: Model, monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    read_into = CheckpointSource.read_into

    async def failing(self: CheckpointSource, key: GroupKey, buffer: Any) -> None:
        if left and key == (4, "ffn"):
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        await read_into(self, key, buffer)

    monkeypatch.setattr(CheckpointSource, "read_into", failing)


EIO = r"Input/output error"
CASES = [
    pytest.param(copying("D2H"), rf"kv_swapper failed at layer [1-5] group 'kv'.*{EIO}", id="D2H"),
    pytest.param(copying("H2D"), rf"kv_uploader failed at layer [1-5] group 'kv'.*{EIO}", id="H2D"),
    pytest.param(attending, rf"compute_scheduler failed at layer 0 group 'attn'.*{EIO}", id="attention"),
    pytest.param(reading_weights, rf"disk_reader failed at layer 4 group 'ffn'.*{EIO}", id="weights"),
]


@pytest.mark.parametrize(("breaks", "says"), CASES)
async def test_a_line_that_fails_is_run_anew_and_one_that_fails_again_is_told(
    breaks: Break, says: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(30):
        before = asyncio.all_tasks()
        async with Model.open(checkpoint, **settings_with_room(checkpoint, tmp_path, **PLACES, **SETTINGS)) as model:
            expected = await answers(model)
            left: list[int] = []
            breaks(model, monkeypatch, left)
            left.append(1)
            assert await answers(model) == expected
            assert not left
            left.extend([1] * 1000)
            failures = await asyncio.gather(*calls(model), return_exceptions=True)
            left.clear()
            assert all(isinstance(failure, ActorFailed) for failure in failures), failures
            assert len({id(failure) for failure in failures}) == len(PROMPTS), "to each an error of its own"
            with pytest.raises(ActorFailed, match=says):
                raise failures[0]
            await at_baseline(model, before)
            assert await answers(model) == expected


def reading(model: Model, monkeypatch: pytest.MonkeyPatch, bad: list[int]) -> None:
    monkeypatch.setattr(SpillFile, "_read", failing_at(SpillFile._read, model, bad))


def writing(model: Model, monkeypatch: pytest.MonkeyPatch, bad: list[int]) -> None:
    monkeypatch.setattr(SpillFile, "_write", failing_at(SpillFile._write, model, bad))


def corrupting(model: Model, monkeypatch: pytest.MonkeyPatch, bad: list[int]) -> None:
    preadv, size = os.preadv, model.runtime.cache.memory.layouts[0].cell_bytes
    layer_bytes = model.runtime.cache.memory.layouts[0].layer_bytes

    def flipping(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        for place in range(offset, offset + count, size):
            if place % layer_bytes // size in bad and len(buffers[0]) % size == 0:
                buffers[0][place - offset + 70] ^= 1
        return count

    monkeypatch.setattr("pipeline.state.spill_file.os", SimpleNamespace(**{**vars(os), "preadv": flipping}))


def failing_at(work: Callable[..., None], model: Model, bad: list[int]) -> Any:
    def working(self: SpillFile, region: Region, run: Copy, buffer: memoryview) -> None:
        size = model.runtime.cache.memory.layouts[0].cell_bytes
        if any(block * size in range(run.source_offset, run.source_offset + run.length) for block in bad):
            raise OSError(errno.EIO, "Input/output error")
        work(self, region, run, buffer)

    return working


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        pytest.param(reading, rf"kv_reader failed at layer [1-5] group 'kv'.*{EIO}", id="read"),
        pytest.param(corrupting, r"kv_reader failed at layer [1-5] group 'kv'.*checksum.*kv_disk elsewhere", id="sum"),
        pytest.param(writing, rf"kv_swapper failed at layer [1-5] group 'kv'.*{EIO}", id="write"),
    ],
)
@pytest.mark.parametrize("device", ["cpu-copy", "cpu"])
async def test_a_block_that_fails_ends_the_requests_that_hold_it_and_they_alone(
    breaks: Break, says: str, device: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with_room(checkpoint, tmp_path, **{**PLACES, "device": device}, **SETTINGS)
    async with asyncio.timeout(30), Model.open(checkpoint, **settings, share_prefixes=True) as model:
        expected = await answers(model)
        bad: list[int] = []
        breaks(model, monkeypatch, bad)
        crew = model.runtime.line._crew
        running = calls(model)
        victim = await started(model, PROMPTS[1])
        bad.append(victim.blocks[2 if breaks is writing else 0])  # the first is a prefix, which is there already
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        with pytest.raises(ActorFailed, match=says):
            raise outcomes[1]  # type: ignore[misc]
        assert (outcomes[0], outcomes[2]) == (expected[0], expected[2])
        assert model.statistics().requests.failed == 1
        assert model.statistics().kv_blocks.used == 0
        assert model.runtime.line._crew is crew, "the line has not been run anew"
        assert bad[0] not in model.runtime.admission.batcher.pool._digests, "nobody takes it for a prefix"
        bad.clear()
        assert await answers(model) == expected


async def started(model: Model, prompt: list[int]) -> RunningSequence:
    """The request with this prompt, once it has its blocks."""
    while True:
        for one in model.runtime.admission.batcher._running:
            if one.prompt_ids.tolist() == list(prompt):
                return one
        await asyncio.sleep(0)


async def test_a_read_is_tried_once_more(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Model.open(checkpoint, **settings_with_room(checkpoint, tmp_path, **PLACES, **SETTINGS)) as model:
        expected = await answers(model)
        left = [1]
        monkeypatch.setattr(SpillFile, "_read", broken(SpillFile._read, left))
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
        for steps in (*range(0, 60, 4 if EVERYTHING else 7), *range(60, 600, 60 if EVERYTHING else 90)):
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
