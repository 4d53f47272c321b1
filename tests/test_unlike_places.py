"""Layers that differ, whose KV blocks and recurrent states live in three places: no bit changes, and all comes back."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.kv_places import settings_with_room
from support.unlike_models import UNLIKE

from pipeline import Model

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
SETTINGS: dict[str, Any] = {"context_tokens": 96, "kv_tokens": 480, "max_tokens_per_pass": 48, "max_requests": 4}
DRAW = random.Random(6)
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(count)] for count in (60, 37, 17, 5, 1)]
PLACES = [("cpu-copy", 2, 2), ("cpu", 2, 2)]


@pytest.fixture(scope="module", params=UNLIKE)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_models.save_model(tiny_models.randomised(UNLIKE[request.param](), seed=3), folder, shards=1)
    return folder


def calls(model: Model, **arguments: Any) -> list[asyncio.Task[Any]]:
    async def one(prompt: list[int]) -> tuple[Any, Any]:
        output = await model.generate(prompt, max_new_tokens=9, ignore_eos=True, logprobs=3, **arguments)
        return output.token_ids, output.logprobs

    return [asyncio.create_task(one(prompt)) for prompt in PROMPTS]


def nothing_is_held(model: Model) -> bool:
    states = model.statistics().recurrent_state
    return model.statistics().kv_blocks.used == 0 and (states is None or states.used == 0)


async def test_three_places_change_no_bit(checkpoint: Path, tmp_path: Path) -> None:
    async with Model.open(checkpoint, device="cpu", **SETTINGS) as model:
        expected = await asyncio.gather(*calls(model))
        layouts = [*model.runtime.cache.memory.layouts.values()]
        sizes = [layout.layer_bytes for layout in layouts]
        assert len({*layouts}) == len({*sizes}) == 2
    for device, on_device, in_host in PLACES:
        room = settings_with_room(checkpoint, tmp_path, on_device, in_host, device=device, **SETTINGS)
        async with Model.open(checkpoint, **room) as model:
            memory = model.runtime.cache.memory
            for layers in (memory.placement.moving, memory.placement.disk):
                assert {type(memory.layouts[layer]) for layer in layers} == {type(layout) for layout in layouts}
            assert await asyncio.gather(*calls(model)) == expected
            assert nothing_is_held(model)
            if device == "cpu-copy":
                assert {memory.nbytes for memory in memory.device_cells} == {
                    max(sizes[layer] for layer in memory.placement.moving)
                }


async def test_prompts_go_on_from_what_others_have_left_wherever_that_is(checkpoint: Path, tmp_path: Path) -> None:
    async with Model.open(checkpoint, device="cpu", **SETTINGS) as model:
        expected = await asyncio.gather(*calls(model))
    room = settings_with_room(checkpoint, tmp_path, 2, 2, device="cpu-copy", **SETTINGS)
    async with Model.open(checkpoint, **room) as model:
        for _ in range(2):
            assert await asyncio.gather(*calls(model, cache_scope="all")) == expected
        states, prefixes = model.statistics().recurrent_state, model.statistics().prefixes
        assert prefixes.hit_tokens >= 48
        assert states is None or states.hits >= 1
        assert nothing_is_held(model)


@pytest.mark.parametrize("checkpoint", ["hybrid"], indirect=True)
async def test_cancelled_while_states_move(checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_with_room(checkpoint, tmp_path, 2, 2, device="cpu-copy", **SETTINGS)
    async with asyncio.timeout(60), Model.open(checkpoint, **settings) as model:
        expected = await asyncio.gather(*calls(model, cache_scope="all"))
        for steps in (9, 110, 260):
            running = calls(model, cache_scope="all")
            for _ in range(steps):
                await asyncio.sleep(0)
            gone = steps % len(running)
            running[gone].cancel()
            outcomes = await asyncio.gather(*running, return_exceptions=True)
            for index, outcome in enumerate(outcomes):
                assert outcome == expected[index] or (index == gone and isinstance(outcome, asyncio.CancelledError))
            assert nothing_is_held(model)
