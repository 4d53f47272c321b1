"""90 requests, of which 30 leave at random moments: the others get the same tokens, and nothing is kept.

Half of them share beginnings, of prompts, with a recurrent model also snapshots of its state. Of one with experts each
pass reads the most.
"""

import asyncio
import contextlib
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING
from support.expert_slots import all_slots_are_back
from support.family_models import CASES
from support.fitting_settings import fitting
from support.kv_places import settings_with_room

from pipeline import Model

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
REQUESTS, LEAVING = (300, 100) if EVERYTHING else (90, 30)
LAYERS = 4
SETTINGS: dict[str, Any] = {"device": "cpu-copy", "context_tokens": 48, "kv_tokens": 1920, "max_tokens_per_pass": 192}
DRAW = random.Random(12)
PROMPTS = [
    [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(DRAW.randint(1, 40))] for _ in range(REQUESTS)
]
for index, prompt in enumerate(PROMPTS):
    if index % 2:
        prompt[: len(prompt) * 2 // 3] = PROMPTS[index % 10][: len(prompt) * 2 // 3]
NEW_TOKENS = [DRAW.randint(1, 8) for _ in range(REQUESTS)]
GONE = object()


@pytest.fixture(scope="module", params=["llama_gqa_llama3", "hybrid", "experts"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    families = {"hybrid": "qwen3_5_text", "experts": "qwen3_moe"}
    if request.param not in families:
        return tiny_models.save_new(request.param, tmp_path_factory, layers=LAYERS)
    folder = tmp_path_factory.mktemp(request.param)
    tiny_models.save_model(tiny_models.randomised(CASES[families[request.param]].config(), seed=3), folder, shards=1)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[tuple[int, ...]]:
    """What each request is answered when nobody leaves, and some when nobody else is there."""

    async def main() -> list[tuple[int, ...]]:
        async with Model.open(checkpoint, context_tokens=48, kv_tokens=1920) as model:
            together = await asyncio.gather(*(whole(model, index) for index in range(REQUESTS)))
            some = range(0, REQUESTS, 1 if EVERYTHING else 7)
            assert [await whole(model, index) for index in some] == [together[index] for index in some]
            return together

    return asyncio.run(main())


async def whole(model: Model, index: int) -> tuple[int, ...]:
    return (await model.generate(PROMPTS[index], **arguments(index))).token_ids


def arguments(index: int) -> dict[str, Any]:
    scope = "a" if index % 2 else None
    return {"max_new_tokens": NEW_TOKENS[index], "ignore_eos": True, "cache_scope": scope}


async def timed_out(model: Model, index: int, seconds: float) -> object:
    try:
        async with asyncio.timeout(seconds):
            return await whole(model, index)
    except TimeoutError:
        return GONE


async def abandoned(model: Model, index: int, chunks: int) -> object:
    """A stream that nobody reads on."""
    token_ids: list[int] = []
    stream = model.stream(PROMPTS[index], **arguments(index))
    async with contextlib.aclosing(stream):
        async for chunk in stream:
            token_ids += chunk.token_ids
            if len(token_ids) == chunks and chunk.finish_reason is None:
                return GONE
    return tuple(token_ids)


async def cancelled(model: Model, index: int, seconds: float) -> object:
    call = asyncio.create_task(whole(model, index))
    await asyncio.wait([call], timeout=seconds)
    call.cancel()
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return GONE if isinstance(outcome, asyncio.CancelledError) else outcome


async def one(model: Model, index: int, leaving: set[int]) -> object:
    draw = random.Random(index)
    await asyncio.sleep(draw.random() * 0.15)
    if index not in leaving:
        return await whole(model, index)
    if index % 3 == 0:
        return await abandoned(model, index, 1 + index % 4)
    return await (timed_out if index % 3 == 1 else cancelled)(model, index, draw.random() * 0.2)


def held(model: Model) -> dict[str, object]:
    """What must be as it was before; slots are not compared, since an idle line holds some by right."""
    budgets = [budget for line in model.runtime.wired.lines for budget in line.budgets]
    states = model.runtime.admission.batcher.states
    return {
        "blocks": model.statistics().kv_blocks.used,
        "states": states and (states.used, len(states._free) + states.kept),
        "requests": (model.statistics().requests.running, model.statistics().requests.waiting),
        "expert slots": model.runtime.expert_line and all_slots_are_back(model),
        "KV slots": {b.name: b.statistics().held for b in budgets if b.name.startswith("kv")},
        "descriptors": set(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "threads": {thread.name for thread in threading.enumerate()},
    }


@pytest.mark.parametrize("places", ["device", "host and disk"])
async def test_those_who_stay_notice_nothing(
    places: str, checkpoint: Path, expected: list[tuple[int, ...]], tmp_path: Path
) -> None:
    settings = fitting(checkpoint, SETTINGS | {"gpu_experts": 4, "host_experts": 6})
    if places != "device":
        settings = settings_with_room(checkpoint, tmp_path, device_layers=2, host_layers=2, **settings)
    async with asyncio.timeout(60), Model.open(checkpoint, **settings) as model:
        placement = model.runtime.cache.memory.placement
        counts = [len(layers) for layers in (placement.device, placement.host, placement.disk)]
        assert counts == [4, 0, 0] if places == "device" else (counts[0], counts[2] > 1) == (0, True)
        await asyncio.gather(*(whole(model, index) for index in range(8)))
        before = await settled(model)
        leaving = set(random.Random(places).sample(range(REQUESTS), LEAVING))
        outcomes = await asyncio.gather(*(one(model, index, leaving) for index in range(REQUESTS)))
        for index, outcome in enumerate(outcomes):
            assert outcome == expected[index] or (outcome is GONE and index in leaving)
        gone = outcomes.count(GONE)
        passes = model.statistics().passes
        after = await settled(model)
        assert after == before
        if (states := model.statistics().recurrent_state) is not None:
            assert states.used == 0 < states.snapshots
            assert states.hits > REQUESTS // 20
        assert model.statistics().passes <= passes + 1, "within one pass"
        requests = model.statistics().requests
        assert (requests.finished + requests.cancelled, requests.failed) == (8 + REQUESTS, 0)
        # A call may leave when its last token is there already: then it is gone, and its request has finished.
        assert LEAVING // 3 < requests.cancelled <= gone


async def settled(model: Model) -> dict[str, object]:
    """Once the pass under way has ended and its rows are home."""
    while model.runtime.admission.in_pass:
        await asyncio.sleep(0.001)
    for _ in range(200):
        state = held(model)
        if not any(state["KV slots"].values()):  # type: ignore[attr-defined]
            break
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.05)
    return held(model)
