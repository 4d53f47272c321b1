"""A conversation that was saved goes on with the same bits on a real GPU, wherever its blocks and states live."""

import random
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.family_models import CASES
from support.kv_places import settings_with_room

from pipeline import Model
from pipeline.engine import plan as plan_module

pytestmark = pytest.mark.cuda
PROMPT = [random.Random(5).randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(150)]
SETTINGS: dict[str, Any] = {"device": "cuda", "context_tokens": 256, "kv_tokens": 2560, "max_requests": 4}


async def answer(model: Model, prompt: list[int], scope: str) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {"temperature": 1.0, "seed": 4, "logprobs": 2, "ignore_eos": True}
    output = await model.generate(prompt, max_new_tokens=30, cache_scope=scope, **arguments)
    return output.token_ids, output.logprobs, output.cached_tokens


@pytest.mark.parametrize("name", ["dense", "recurrent"])
async def test_a_conversation_goes_on_after_a_restart(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in other places than those that it was saved from."""
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 0)
    checkpoint = tmp_path / name
    if name == "dense":
        tiny_models.save("llama_gqa_llama3", checkpoint, layers=8)
    else:
        tiny_models.save_model(tiny_models.randomised(CASES["qwen3_5_text"].config(), seed=3), checkpoint, shards=1)
    rooms = [SETTINGS, settings_with_room(checkpoint, tmp_path, *((4, 5) if name == "dense" else (2, 2)), **SETTINGS)]
    expected = []
    for index, settings in enumerate(rooms):
        async with Model.open(checkpoint, **settings) as model:
            assert bool(model.runtime.cache.memory.placement.disk) == bool(index)
            ids = [*PROMPT, *(await answer(model, PROMPT, "a"))[0]]
            assert await model.save_session(tmp_path / str(index), ids, cache_scope="a") == 176
            expected.append(await answer(model, [*ids, 7, 8], "a"))
    assert expected[0] == expected[1]
    for index, settings in enumerate(rooms):
        async with Model.open(checkpoint, **settings) as model:
            loaded = await model.load_session(tmp_path / str(1 - index), cache_scope="b")
            assert loaded.cached_tokens == expected[0][2] == 176
            assert await answer(model, [*loaded.token_ids, 7, 8], "b") == expected[0]
