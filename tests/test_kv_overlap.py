"""KV blocks that are slow on their way: nothing is read before it is there, nor overwritten while it is copied."""

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.kv_places import settings_with_room

from actors.core.ports import Copy, Event
from pipeline import Model
from pipeline import plan as plan_module
from pipeline.devices import cpu
from pipeline.sequences.spill_file import SpillFile

LAYERS = 6
SETTINGS: dict[str, Any] = {"context_tokens": 64, "kv_tokens": 128, "max_tokens_per_pass": 24}
DRAW = random.Random(4)
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(count)] for count in (20, 3, 33, 9, 17)]
PLACES = {"device": "cpu-copy", "device_layers": 4, "host_layers": 4}


@pytest.fixture(autouse=True)
def _nothing_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", folder, layers=LAYERS)
    return folder


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
        cache = model.runtime.cache
        slow_start = cache.placement.disk[slow_layer]
        starts = {layer: index * cache.layout.layer_bytes for index, layer in enumerate(cache.placement.disk)}
        write = SpillFile._write

        def slow(self: SpillFile, start: int, run: Copy, buffer: memoryview) -> None:
            if start == starts[slow_start]:
                time.sleep(0.03)
            write(self, start, run, buffer)  # type: ignore[arg-type]

        monkeypatch.setattr(SpillFile, "_write", slow)
        assert await answers(model) == expected
