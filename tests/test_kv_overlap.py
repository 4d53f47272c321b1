"""KV blocks that are slow on their way: nothing is read before it is there, nor overwritten while it is copied."""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.kv_places import settings_with_room

from actors.core.message import GroupKey
from actors.core.ports import Copy
from pipeline import ActorFailed, Model
from pipeline.devices import cpu
from pipeline.devices.memory import Memory
from pipeline.models import decoder
from pipeline.models.attention import LayerKV
from pipeline.reading.source import CheckpointSource
from pipeline.state.spill_file import Region, SpillFile

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS = 6
SETTINGS: dict[str, Any] = {"context_tokens": 64, "kv_tokens": 128, "max_tokens_per_pass": 24}
DRAW = random.Random(4)
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(count)] for count in (20, 3, 33, 9, 17)]
PLACES = {"device": "cpu-copy", "device_layers": 4, "host_layers": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)


async def answers(model: Model) -> list[tuple[int, ...]]:
    """Room for two or three requests at once: blocks of those that end go to those that wait."""
    calls = (model.generate(prompt, max_new_tokens=6, ignore_eos=True) for prompt in PROMPTS)
    return [output.token_ids for output in await asyncio.gather(*calls)]


async def expected_answers(checkpoint: Path) -> list[tuple[int, ...]]:
    async with Model.open(checkpoint, **SETTINGS) as model:
        return await answers(model)


@pytest.mark.parametrize("device", ["cpu-copy", "cpu"])
@pytest.mark.parametrize("slow_layer", [0, -1])
async def test_a_layer_is_not_read_back_before_it_was_written(
    slow_layer: int, device: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are written at once, so that there is a slot for the next pass of the slow one."""
    expected = await expected_answers(checkpoint)
    settings = settings_with_room(checkpoint, tmp_path, **{**PLACES, "device": device}, **SETTINGS)
    async with Model.open(checkpoint, **settings) as model:
        regions = model.runtime.cache.memory.spill_regions
        slow_region = regions[model.runtime.cache.memory.placement.disk[slow_layer]]
        write = SpillFile._write

        def slow(self: SpillFile, region: Region, run: Copy, buffer: memoryview) -> None:
            if region == slow_region:
                time.sleep(0.03)
            write(self, region, run, buffer)  # type: ignore[arg-type]

        monkeypatch.setattr(SpillFile, "_write", slow)
        assert await answers(model) == expected


class Watch:
    """Who looks at which memory, and who writes into it, by its address; every use takes a while."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.uses: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._used: dict[int, list[tuple[str, bool]]] = {}
        self._draw = random.Random(8)

    @contextlib.contextmanager
    def use(self, what: str, **places: int) -> Iterator[None]:
        """Uses memory `to` write into it, `at` to do both, or `of` to read from it."""
        with self._lock:
            self.uses[what] += 1
            for how, place in places.items():
                others = self._used.setdefault(place, [])
                writes = how != "of"
                beside = [other for other, wrote in others if writes or wrote]
                # Several threads read one layer's blocks, each into a place of its own.
                self.broken += [f"{what} beside {other}" for other in beside if (what, other) != ("read", "read")]
                others.append((what, writes))
            seconds = self._draw.random() * self.seconds.get(what, 0.001)
        time.sleep(seconds)
        yield
        with self._lock:
            for how, place in places.items():
                self._used[place].remove((what, how != "of"))

    def install(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on, for the KV blocks of this model."""
        kv_memory = model.runtime.cache.memory
        host = {memory.tensor.data_ptr() for one in kv_memory.host_cells.values() for memory in one}
        places = host | {memory.tensor.data_ptr() for memory in kv_memory.device_cells}
        copy_bytes, attention_half = cpu.copy_bytes, decoder.attention_half
        read, write = SpillFile._read, SpillFile._write

        def copying(source: Memory, target: Memory, copies: Sequence[Copy]) -> None:
            of, to = source.tensor.data_ptr(), target.tensor.data_ptr()
            if of not in places:
                return copy_bytes(source, target, copies)  # type: ignore[arg-type]
            with self.use("H2D" if of in host else "D2H", of=of, to=to):
                return copy_bytes(source, target, copies)  # type: ignore[arg-type]

        def attending(config: Any, weights: Any, hidden_TD: Any, kv: LayerKV, *rest: Any) -> Any:
            with self.use("attention", at=kv.memory.data_ptr()):
                return attention_half(config, weights, hidden_TD, kv, *rest)

        def on_disk(what: str, how: str, work: Callable[..., None]) -> Callable[..., None]:
            def working(spill: SpillFile, region: Region, run: Copy, buffer: memoryview) -> None:
                address = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
                with self.use(what, **{how: address}):
                    work(spill, region, run, buffer)

            return working

        monkeypatch.setattr(cpu, "copy_bytes", copying)
        monkeypatch.setattr(decoder, "attention_half", attending)
        monkeypatch.setattr(SpillFile, "_read", on_disk("read", "to", read))
        monkeypatch.setattr(SpillFile, "_write", on_disk("write", "of", write))


@pytest.mark.parametrize("slow", ["H2D", "D2H", "write"])
async def test_no_memory_is_written_while_it_is_in_use(
    slow: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests come, go, and are cancelled while their blocks travel; blocks are used again at once."""
    expected = await expected_answers(checkpoint)
    watch = Watch()
    watch.seconds[slow] = 0.01
    async with Model.open(checkpoint, **settings_with_room(checkpoint, tmp_path, **PLACES, **SETTINGS)) as model:
        placement = model.runtime.cache.memory.placement
        assert placement.device
        assert placement.host
        assert placement.disk
        watch.install(model, monkeypatch)
        assert await answers(model) == expected
        for seconds in (0.0, 0.004, 0.015):
            calls = [asyncio.create_task(model.generate(prompt, max_new_tokens=6)) for prompt in PROMPTS]
            await asyncio.sleep(seconds)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert await answers(model) == expected
        assert set(watch.uses) == {"H2D", "D2H", "attention", "read", "write"}
    assert watch.broken == []


@pytest.mark.parametrize("slow", ["H2D", "D2H"])
async def test_after_a_failure_nothing_is_overwritten_that_is_still_in_use(
    slow: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines stop in the middle of an operation, which goes on, and start anew at once."""
    expected = await expected_answers(checkpoint)
    read_into, failures = CheckpointSource.read_into, [0]

    async def failing(self: CheckpointSource, key: GroupKey, buffer: Any) -> None:
        if failures[0]:
            failures[0] -= 1
            raise OSError(5, "Input/output error")
        await read_into(self, key, buffer)

    watch = Watch()
    async with Model.open(checkpoint, **settings_with_room(checkpoint, tmp_path, **PLACES, **SETTINGS)) as model:
        watch.install(model, monkeypatch)
        monkeypatch.setattr(CheckpointSource, "read_into", failing)
        for _ in range(2):
            watch.seconds[slow] = 0.15
            before = watch.uses[slow]
            calls = [asyncio.create_task(model.generate(prompt, max_new_tokens=6)) for prompt in PROMPTS]
            while watch.uses[slow] < before + 3:
                await asyncio.sleep(0.001)
            failures[0] = 1000
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            failures[0] = 0
            watch.seconds[slow] = 0.001
            assert {type(outcome) for outcome in outcomes} == {ActorFailed}
            assert await answers(model) == expected
    assert watch.broken == []
