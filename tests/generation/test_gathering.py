"""Calls that come at about the same time share their first pass."""

import asyncio
import time
from pathlib import Path

import pytest
from support import tiny_models

from pipeline import Model
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.section import Section


async def test_calls_that_keep_the_loop_busy_one_after_the_other_share_their_first_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path)
    begin, sizes = Section.begin, list[int]()

    async def count(self: Section) -> GenerationPass:
        pass_ = await begin(self)
        sizes.append(len(pass_.pieces))
        return pass_

    monkeypatch.setattr(Section, "begin", count)
    async with Model.open(tmp_path, device="cpu") as model:

        async def come(turns: int) -> None:
            for _ in range(turns):
                time.sleep(0.0004)
                await asyncio.sleep(0)
            await model.generate([1, 5, turns + 1], max_new_tokens=2, ignore_eos=True)

        await asyncio.gather(*(come(turns) for turns in range(8)))
    assert sizes == [8, 8]
