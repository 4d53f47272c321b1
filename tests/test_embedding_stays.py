"""The embedding table stays in memory where all weight groups do, and computing has a place of its own."""

import asyncio

import pytest
from support import tiny_models
from support.group_places import settings_with_groups

from pipeline import Model, Output
from pipeline.reading.kept_table import KeptTable

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
NEW_TOKENS = 6


async def generate(model: Model) -> Output:
    return await model.generate(tiny_models.PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True)


async def nothing_is_read(model: Model) -> None:
    source, read = model.runtime.source, -1
    while source.bytes_read != read:
        read = source.bytes_read
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_the_embedding_table_stays_where_all_groups_do_and_copies_are_made(
    device: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=3)
    async with Model.open(checkpoint, device=device) as model:
        runtime = model.runtime
        stays = any(one.holder == "embedding table" for one in runtime.plan.holdings)
        assert stays == (device == "cpu-copy")
        assert (runtime.embedding.kept is not None) == stays
        first = await generate(model)
        await nothing_is_read(model)
        before = model.statistics().bytes_read
        assert (await generate(model)).token_ids == first.token_ids
        rows = model.runtime.embedding.parts[0].row_bytes * (len(set(tiny_models.PROMPT)) + NEW_TOKENS)
        assert 0 <= model.statistics().bytes_read - before <= (0 if stays else rows)
    for tight in ({"residency": False}, settings_with_groups(checkpoint, 0.3, 0.0, device=device)):
        async with Model.open(checkpoint, **{"device": device, **tight}) as model:
            assert model.runtime.embedding.kept is None
            assert (await generate(model)).token_ids == first.token_ids


async def test_closing_ends_the_loading_of_the_table_and_waits_for_it(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=3)
    ended: list[bool] = []

    async def load(self: KeptTable, see: object) -> None:
        """A read that is cancelled goes on until its thread writes no more."""
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.3)
            ended.append(True)

    monkeypatch.setattr(KeptTable, "load", load)
    model = await Model.open(checkpoint, device="cpu-copy")
    await generate(model)
    async with asyncio.timeout(10):
        await model.aclose()
    assert ended
