"""As many requests wait as may: one more is told at once, and those that wait hold no tables."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline import Busy, ConfigError, Model, PenstockError
from pipeline.config import Config
from pipeline.generation.build import build
from pipeline.generation.sampling import Sampler
from pipeline.generation.token_tables import TokenTables

SETTINGS: dict[str, Any] = {"device": "cpu", "context_tokens": 64, "kv_tokens": 256}
LONG: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("busy") / "model"
    write_small_checkpoint(folder, "llama-3-8b")
    return folder


async def test_one_too_many_is_told_at_once_and_the_others_are_served(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **SETTINGS, max_requests=2, max_waiting=3) as model:
        calls = [asyncio.create_task(model.generate([5, 9], **LONG)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match=r"0 requests run, 5 wait, .* max_requests=2 and max_waiting=3"):
            await model.generate([5, 9], **LONG)
        while model.statistics().requests.running < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(Busy, match=r"2 requests run, 3 wait"):
            model.stream([5, 9], **LONG)
        assert len({output.token_ids for output in await asyncio.gather(*calls)}) == 1
        assert (await model.generate([5, 9], **LONG)).token_ids
        assert issubclass(Busy, PenstockError)


async def test_the_samples_of_a_call_wait_together_or_not_at_all(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **SETTINGS, max_requests=2, max_waiting=1) as model:
        with pytest.raises(Busy, match="0 wait, and 4 that come now"):
            await model.generate([5, 9], n=4, **LONG)
        assert (model.statistics().requests.waiting, model.statistics().requests.running) == (0, 0)
        assert len(await model.generate([5, 9], n=3, **LONG)) == 3


async def test_a_stream_that_was_made_before_the_others_came_is_refused_when_it_begins(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **SETTINGS, max_requests=1, max_waiting=0) as model:
        stream = model.stream([5, 9], **LONG)
        call = asyncio.create_task(model.generate([5, 9], **LONG))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await anext(stream)
        await call


async def test_nothing_is_looked_at_where_no_more_may_wait(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **SETTINGS, max_requests=1, max_waiting=0) as model:
        call = asyncio.create_task(model.generate([5, 9], **LONG))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await model.generate(object())  # type: ignore[call-overload]
        await call


@pytest.mark.parametrize("value", [-1, 1.0, True, "many"])
def test_a_number_that_can_never_work_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="max_waiting: need a whole number"):
        Config.from_arguments({"max_waiting": value})


async def test_a_request_has_a_penalty_table_from_its_first_token_on_and_leaves_it_to_the_next(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    update = TokenTables.update

    def updating(self: TokenTables, sampler: Sampler) -> Any:
        index, changed = update(self, sampler)
        made.extend([index] if changed is None else [])
        return index, changed

    monkeypatch.setattr(TokenTables, "update", updating)
    async with Model.open(checkpoint, **SETTINGS, max_requests=3) as model:
        penalties = {"repetition_penalty": 1.1, "frequency_penalty": 0.1}
        await asyncio.gather(*(model.generate([5, 9], **LONG, **penalties) for _ in range(12)))
        await asyncio.gather(*(model.generate([5, 9], **LONG) for _ in range(3)))
    assert sorted(made) == sorted(4 * [0, 1, 2])


def test_the_plan_counts_the_tables_of_those_that_run(checkpoint: Path) -> None:
    runtime = build(checkpoint, Config(**SETTINGS, max_requests=3))
    runtime.device.free()
    (tables,) = [one for one in runtime.plan.holdings if one.holder == "penalty tables"]
    assert (tables.place, tables.nbytes, tables.knob) == ("host", 3 * 300 * 4, "max_requests")


def test_the_plan_counts_the_tokenizer_by_its_file(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    counted = []
    for name in ("config.json", "tokenizer.model", "tokenizer.json"):
        (tmp_path / name).touch()
        runtime = build(tmp_path, Config(**SETTINGS))
        runtime.device.free()
        counted.append([one.nbytes for one in runtime.plan.holdings if one.holder == "tokenizer"])
    assert counted == [[], [300 * 300], [300 * 600]]
