"""Memory that is promised at opening and touched later: no two open models are ever promised the same bytes."""

import asyncio
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models

from pipeline import ConfigError, Model
from pipeline.config import Config
from pipeline.devices.memory import HostMemory
from pipeline.generation.build import build
from pipeline.generation.sized_plans import SizedPlans, make_plans
from pipeline.system.host_memory import resident_bytes
from pipeline.system.promises import promised_elsewhere

POOLS = {"host": "host"}
KV_TOKENS = 1 << 17
"""96 MiB of KV blocks in a small model, which is far from touched."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory)


@pytest.fixture(autouse=True)
def no_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.system.promises._promises", weakref.WeakKeyDictionary())


def room(bytes_for_kv: int) -> dict[str, Any]:
    return {"device": "cpu", "kv_tokens": KV_TOKENS, "host_memory": resident_bytes() + (64 << 20) + bytes_for_kv}


def promised() -> int:
    return sum(one.nbytes for one in promised_elsewhere(POOLS))


def kv_bytes(model: Model) -> int:
    return model.runtime.cache.memory.layouts[0].layer_bytes * model.runtime.config.layers


async def test_a_second_model_is_refused_what_the_first_was_promised(checkpoint: Path) -> None:
    async with Model.open(checkpoint, **room(110 << 20)) as first:
        with pytest.raises(ConfigError, match=rf"^host memory: need .*promised to the open model {checkpoint} \d+ MB"):
            await Model.open(checkpoint, **room(110 << 20))
        assert kv_bytes(first) * 0.9 < promised() < kv_bytes(first) * 1.2
        async with Model.open(checkpoint, **room(220 << 20)) as second:
            assert second.runtime.plan.need("host") > 2 * kv_bytes(first)
            assert promised() > 1.8 * kv_bytes(first)
    assert promised() == 0, "closing gives back"
    async with Model.open(checkpoint, **room(110 << 20)):
        pass


async def test_two_devices_of_one_model_hold_one_promise_between_them(checkpoint: Path) -> None:
    two = {**room(150 << 20), "device": "auto", "devices": "cpu,cpu"}
    async with Model.open(checkpoint, **room(150 << 20)) as model:
        alone = promised()
    async with Model.open(checkpoint, **two) as model:
        assert 0.8 * alone < promised() < 1.3 * alone
        have = [one.plan.available["host"] for one in model.runtime.sections]
        assert sum(have) <= room(150 << 20)["host_memory"] + (16 << 20)
        with pytest.raises(
            ConfigError, match=r"^section \d \(cpu, \d layers\): host memory: need .*promised to the open"
        ):
            await Model.open(checkpoint, **two)
    assert promised() == 0, "closing gives back what both were promised"


async def test_of_two_that_open_at_once_one_is_refused_where_one_fits(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planning_takes_a_while(*arguments: Any) -> SizedPlans:
        plans = make_plans(*arguments)
        time.sleep(0.05)
        return plans

    monkeypatch.setattr("pipeline.generation.blueprint.make_plans", planning_takes_a_while)
    settings = room(110 << 20)
    opened = await asyncio.gather(
        *(Model.open(checkpoint, **settings)._open() for _ in range(2)), return_exceptions=True
    )
    models = [one for one in opened if isinstance(one, Model)]
    refused = [one for one in opened if isinstance(one, ConfigError)]
    assert (len(models), len(refused)) == (1, 1)
    assert "promised to the open model" in str(refused[0])
    await models[0].aclose()
    assert promised() == 0


@pytest.mark.parametrize(
    "place",
    [
        "engine.wiring.find_policy",
        "engine.shared_source.CheckpointSource",
        "generation.section_runtime.KeyValueCache",
        "engine.runtime.wire",
    ],
)
def test_an_opening_that_fails_gives_back(place: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **named: object) -> None:
        assert promised() > 0
        raise ValueError("failed")

    monkeypatch.setattr(f"pipeline.{place}", failing)
    with pytest.raises(ValueError, match="failed") as error:
        build(checkpoint, Config(device="cpu"))
    assert promised() == 0, f"while {error.value} is kept"


async def test_what_was_touched_counts_once(checkpoint: Path) -> None:
    """By then it is in the process, where the next plan finds it."""
    async with Model.open(checkpoint, **room(110 << 20)) as model:
        before = promised()
        blocks = next(memory for memory in model.runtime.device._memory if memory.nbytes > 20 << 20)
        blocks.tensor[: 20 << 20].fill_(1)
        assert 20 << 20 <= before - promised() <= 24 << 20


async def test_memory_that_plays_a_device_is_the_hosts(checkpoint: Path) -> None:
    """Both places of such a plan take from it, so what one model was promised in either, another lacks in both."""
    async with Model.open(checkpoint, device="cpu-copy", kv_tokens=KV_TOKENS) as model:
        assert promised() > 0.9 * kv_bytes(model)
        both = promised_elsewhere({"host": "host", "device": "host"})
        assert [one.place for one in both] == ["host", "device"]
        assert promised_elsewhere({"device": "cuda:0"}) == []


def test_a_model_that_nobody_keeps_is_promised_nothing(checkpoint: Path) -> None:
    runtime = build(checkpoint, Config(device="cpu"))
    assert promised() > 0
    runtime.device.free()
    assert promised() == 0


def test_touched_memory_is_counted_by_the_page() -> None:
    memory = HostMemory(1 << 20)
    assert memory.touched_bytes() == 0
    memory.view[5] = 1
    memory.view[100_000] = 1
    assert memory.touched_bytes() == 2 * 4096
    memory.free()
    assert memory.touched_bytes() == 0
    small = HostMemory(10)
    small.view[0] = 1
    assert small.touched_bytes() == 10
