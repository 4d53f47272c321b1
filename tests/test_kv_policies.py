"""KV in three places, under every policy, with samples and shared prefixes: the same tokens as all on the device."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.kv_places import settings_with_room

from pipeline import Model
from pipeline.engine.policies import POLICIES

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS = 6
SETTINGS: dict[str, Any] = {"context_tokens": 96, "kv_tokens": 480, "max_tokens_per_pass": 40, "gpu_groups": 6}
DRAW = random.Random(9)
PREFIX = [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(50)]
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(count)] for count in (20, 33, 5)]
Answers = list[list[tuple[int, ...]]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a window, so that blocks behind it do not travel."""
    return tiny_models.save_new("mistral_window", tmp_path_factory, layers=LAYERS)


async def plain(model: Model) -> list[tuple[int, ...]]:
    calls = (model.generate(prompt, max_new_tokens=5, ignore_eos=True) for prompt in PROMPTS)
    return [output.token_ids for output in await asyncio.gather(*calls)]


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[tuple[int, ...]]:
    async def main() -> list[tuple[int, ...]]:
        async with Model.open(checkpoint, **SETTINGS) as model:
            return await plain(model)

    return asyncio.run(main())


@pytest.mark.parametrize("device", ["cpu-copy", "cpu"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_every_policy_moves_kv(
    policy: str, device: str, checkpoint: Path, expected: list[tuple[int, ...]], tmp_path: Path
) -> None:
    settings = settings_with_room(
        checkpoint, tmp_path, device_layers=4, host_layers=4, device=device, policy=policy, **SETTINGS
    )
    async with asyncio.timeout(20), Model.open(checkpoint, **settings) as model:
        assert len(model.runtime.cache.memory.placement.disk) == (4 if device == "cpu-copy" else 5)
        for _ in range(2):
            assert await plain(model) == expected


async def shared(model: Model) -> Answers:
    """Samples of one prompt, and calls that begin alike, at once and one after the other."""
    arguments: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3, "ignore_eos": True}

    async def samples(prompt: list[int], n: int, **scope: str) -> list[tuple[int, ...]]:
        return [output.token_ids for output in await model.generate(prompt, n=n, **scope, **arguments)]

    first = await asyncio.gather(samples(PREFIX, 3), samples([*PREFIX, 7], 2, cache_scope="a"), samples(PROMPTS[1], 1))
    then = await asyncio.gather(*(samples([*PREFIX, token], 2, cache_scope="a") for token in (8, 9)))
    return [*first, *then]


@pytest.mark.parametrize("device", ["cpu-copy", "cpu"])
async def test_samples_and_prefixes_share_blocks_wherever_they_are(
    device: str, checkpoint: Path, tmp_path: Path
) -> None:
    async with Model.open(checkpoint, device=device, **SETTINGS) as model:
        expected = await shared(model)
        computed = model.statistics().computed_tokens
    settings = settings_with_room(checkpoint, tmp_path, device_layers=2, host_layers=3, device=device, **SETTINGS)
    async with Model.open(checkpoint, **settings) as model:
        assert await shared(model) == expected
        assert model.statistics().prefixes.hit_tokens > 5 * 32
        assert model.statistics().computed_tokens == computed
        assert model.statistics().kv_blocks.used == 0
