"""Groups that stay on a GPU or in pinned memory: the same tokens, and no byte of theirs uploaded again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.group_places import settings_with_groups

from pipeline import Model, Output
from pipeline.engine.policies import POLICIES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("nothing_was_there_before")]
SHARES = [(0.3, 0.3), (0.6, 0.0), (0.0, 1.0), (1.0, 0.0)]


async def generate(model: Model) -> Output:
    return await model.generate(tiny_models.PROMPT, max_new_tokens=8, ignore_eos=True, logprobs=5)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("variant", ["llama_gqa_llama3", "qwen3", "mistral_window"])
async def test_the_same_tokens(variant: str, shares: tuple[float, float], tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, variant, tmp_path, 2)
    async with Model.open(tmp_path, device="cuda", residency=False) as model:
        expected = await generate(model)
    settings = await asyncio.to_thread(settings_with_groups, tmp_path, *shares, device="cuda")
    async with Model.open(tmp_path, **settings) as model:
        residency, runtime = model.runtime.residency, model.runtime
        assert bool(residency.stays("device")) == bool(shares[0])
        assert bool(residency.stays("host")) == bool(shares[1])
        assert await generate(model) == expected
        uploads: list[Any] = []
        upload = runtime.device.upload

        def count(*arguments: Any, **named: Any) -> Any:
            uploads.append(arguments[1])
            return upload(*arguments, **named)

        runtime.device.upload = count  # type: ignore[method-assign]
        passes = runtime.program.passes
        assert await generate(model) == expected
        more = runtime.program.passes - passes
        moving = len(runtime.catalog.order) - len(residency.stays("device"))
        assert abs(len(uploads) - 1 - more * (moving + 1)) <= moving, "a block table, and each pass what is to be drawn"


@pytest.mark.parametrize("policy", POLICIES)
async def test_under_every_policy(policy: str, tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, 1)
    async with Model.open(tmp_path, device="cuda", residency=False) as model:
        expected = await generate(model)
    settings = await asyncio.to_thread(settings_with_groups, tmp_path, 0.3, 0.3, device="cuda", policy=policy)
    async with asyncio.timeout(60), Model.open(tmp_path, **settings) as model:
        outputs = [await generate(model) for _ in range(2)]
    assert all(output.token_ids == expected.token_ids for output in outputs)
