"""KV blocks in three places on a real GPU: the same bits as with everything on the device."""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.kv_places import settings_with_room
from support.unlike_models import UNLIKE

from pipeline import Model
from pipeline.engine import plan as plan_module

pytestmark = pytest.mark.cuda
LAYERS = 8
SETTINGS = {"device": "cuda", "context_tokens": 160, "kv_tokens": 1600, "max_tokens_per_pass": 64}
PROMPTS = [
    [random.Random(index).randrange(1, tiny_models.VOCABULARY_SIZE) for _ in range(length)]
    for index, length in enumerate((1, 37, 16, 5, 60, 120))
]


async def answers(model: Model) -> list[tuple[Any, Any]]:
    calls = (model.generate(prompt, max_new_tokens=10, ignore_eos=True, logprobs=3) for prompt in PROMPTS)
    return [(output.token_ids, output.logprobs) for output in await asyncio.gather(*calls)]


@pytest.fixture
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("variant")
    tiny_models.save(request.param, folder, layers=LAYERS)
    return folder


@pytest.mark.parametrize(
    ("variant", "policy"),
    [*zip(tiny_models.VARIANTS, itertools.cycle(["backpressure", "stage3"]), strict=False)],
    indirect=["variant"],
)
async def test_blocks_in_three_places_change_no_bit(
    policy: str, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 0)
    settings = {**SETTINGS, "policy": policy}
    async with Model.open(variant, **settings) as model:
        expected = await answers(model)
        computed_tokens = model.statistics().computed_tokens
    for device_layers, host_layers in ((2, LAYERS // 2), (4, 5)):
        room = settings_with_room(variant, tmp_path, device_layers, host_layers, **settings)
        async with Model.open(variant, **room) as model:
            moved, memory = model.runtime.cache, model.runtime.cache.memory
            assert memory.placement.disk
            assert await answers(model) == expected
            layers = LAYERS - len(memory.placement.device)
            new_bytes = layers * computed_tokens * sum(memory.layouts[0].row_bytes)
            async with asyncio.timeout(5):
                while moved.bytes_out < new_bytes:  # those of the last pass may still be on their way
                    await asyncio.sleep(0.01)
            assert moved.bytes_out == new_bytes, "new rows, nothing else"
            assert moved.bytes_in > 0


@pytest.mark.parametrize("policy", ["backpressure", "stage3"])
@pytest.mark.parametrize("name", UNLIKE)
async def test_layers_that_differ_change_no_bit(
    name: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks, large ones and recurrent states take turns in the same slots."""
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 0)
    tiny_models.save_model(tiny_models.randomised(UNLIKE[name](), seed=3), tmp_path / name, shards=1)
    settings = {**SETTINGS, "policy": policy, "max_requests": len(PROMPTS)}
    async with Model.open(tmp_path / name, **settings) as model:
        assert not model.runtime.cache.memory.placement.moving
        expected = await answers(model)
    room = settings_with_room(tmp_path / name, tmp_path, 2, 2, **settings)
    async with Model.open(tmp_path / name, **room) as model:
        assert model.runtime.cache.memory.placement.disk
        assert await answers(model) == expected
        assert model.runtime.cache.bytes_in > 0


async def test_many_calls_share_their_passes_by_default(tmp_path: Path) -> None:
    """With plenty of memory, and where the device has no room for all weights beside them."""
    tiny_models.save("llama_gqa_llama3", tmp_path, layers=LAYERS)
    prompts = [[1 + (7 * index + place) % 200 for place in range(12)] for index in range(64)]
    one = {"device": "cuda", "kv_tokens": tiny_models.MAX_POSITIONS, "residency": False}
    async with Model.open(tmp_path, **one) as model:
        least = model.runtime.plan.need("device")
    answers = []
    for limit in (None, least + (16 << 20)):
        async with Model.open(tmp_path, device="cuda", gpu_memory=limit) as model:
            calls = (model.generate(prompt, max_new_tokens=20, ignore_eos=True) for prompt in prompts)
            answers.append([output.token_ids for output in await asyncio.gather(*calls)])
            assert model.statistics().passes <= 30, str(model.runtime.kv_room)
            assert not model.runtime.cache.memory.placement.moving
            assert (model.runtime.kv_room.tokens == 64 * tiny_models.MAX_POSITIONS) == (limit is None)
    assert answers[0] == answers[1]
