"""Room for KV blocks where no setting says how much: many calls share their passes, and tight memory breaks nothing."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline import ConfigError, Model
from pipeline.api import BUNDLED
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.cli import main
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.port import ONE_PLACE, TWO_PLACES, Place
from pipeline.devices.sim import SimDevice
from pipeline.generation.blueprint import Blueprint, draw_up
from pipeline.generation.model_plan import ModelPlan
from pipeline.models.model_config import read_config
from pipeline.state.blocks import BLOCK_TOKENS
from pipeline.state.state_layout import StateRoom

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
CALLS, PROMPT_TOKENS, NEW_TOKENS, MOST_PASSES = 64, 12, 20, 30
CONTEXT = {"context_tokens": 128}
"""With which 64 requests take about as many bytes of KV blocks as the heavy model has of weights."""


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Almost no weights, and a context of 4,096 tokens by default."""
    folder = tmp_path_factory.mktemp("light") / "model"
    write_small_checkpoint(folder, "llama-3.2-1b")
    return folder


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heavy") / "model"
    shape = {"layers": 6, "hidden_size": 128, "ffn_size": 2048, "heads": 2, "kv_heads": 1, "head_dim": 64}
    make_checkpoint(folder, "llama-3.2-1b", vocabulary_size=300, **shape)
    return folder


def drawn(folder: Path, places: Sequence[Place], nbytes: int = 1 << 40, **settings: Any) -> Blueprint:
    """The plan for a device that has so many bytes of memory in each place."""
    memory = {place.name: nbytes for place in places}
    device = SimDevice(places, block_rows=CpuDevice.block_rows, loads_later=CpuDevice().loads_later, memory=memory)
    with open_checkpoint(folder) as checkpoint:
        return draw_up(read_config(folder), checkpoint, Config(**settings), device)


def least_bytes(folder: Path, place: str = "host", places: Sequence[Place] = ONE_PLACE, **settings: Any) -> int:
    """What a model takes that has KV room for one request, and in which nothing stays."""
    settings = {**CONTEXT, "kv_tokens": CONTEXT["context_tokens"], "residency": False, **settings}
    return drawn(folder, places, **settings).plan.memory.need(place)


def weight_bytes(folder: Path) -> int:
    return sum(drawn(folder, ONE_PLACE).catalog.group_bytes("host").values())


async def passes_of_many_calls(model: Model) -> int:
    prompts = [[1 + (7 * index + place) % 290 for place in range(PROMPT_TOKENS)] for index in range(CALLS)]
    calls = (model.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True) for prompt in prompts)
    assert all(len(output.token_ids) == NEW_TOKENS for output in await asyncio.gather(*calls))
    assert not any(model.statistics().requests.passes_not_shared.values())
    return model.statistics().passes


async def test_many_calls_share_their_passes_by_default(light: Path) -> None:
    async with Model.open(light, device="cpu") as model:
        room = model.runtime.kv_room
        assert room.tokens == 64 * 4096 == model.statistics().kv_blocks.total * BLOCK_TOKENS
        assert "all that can be used; no more weights move for it" in str(room)
        layer_bytes = model.runtime.cache.memory.layouts[0].layer_bytes
        blocks = [one for one in model.runtime.device._memory if one.nbytes == layer_bytes]
        assert sum(one.touched_bytes() for one in blocks) == 0, "opening takes no time for it"
        assert await passes_of_many_calls(model) <= MOST_PASSES


async def test_where_memory_is_short_weights_that_stay_give_way(heavy: Path) -> None:
    limit = least_bytes(heavy) + int(0.7 * weight_bytes(heavy))
    async with Model.open(heavy, device="cpu", host_memory=limit, max_requests=1, **CONTEXT) as model:
        alone = model.runtime
    async with Model.open(heavy, device="cpu", host_memory=limit, **CONTEXT) as model:
        shared = model.runtime
        assert len(shared.residency.stays("host")) < len(alone.residency.stays("host"))
        assert shared.kv_room.tokens > 20 * alone.kv_room.tokens
        assert re.search(r"at 128 tokens each; for that a pass reads \S+ MB instead of \S+", shared.kv_room.why)
        assert shared.plan.need("host") <= limit
        assert await passes_of_many_calls(model) <= MOST_PASSES


async def test_what_was_just_enough_for_one_request_is_still_enough(heavy: Path) -> None:
    limit = least_bytes(heavy)
    async with Model.open(heavy, device="cpu", host_memory=limit, **CONTEXT) as model:
        assert str(model.runtime.kv_room).endswith("the least that works; memory holds no more")
        whole = await model.generate(list(range(1, 121)), max_new_tokens=8, ignore_eos=True)
        assert len(whole.token_ids) == 8
    with pytest.raises(ConfigError, match=r"^host memory: need .*; set host_memory to at least"):
        await Model.open(heavy, device="cpu", host_memory=limit - 1, **CONTEXT)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("places", [ONE_PLACE, TWO_PLACES], ids=len)
def test_under_no_limit_does_the_default_take_what_is_not_there(
    places: Sequence[Place], on_disk: bool, heavy: Path, tmp_path: Path
) -> None:
    """And it never makes fewer requests share a pass than memory for one more context did before."""
    settings: dict[str, Any] = {**CONTEXT, **({"kv_disk": tmp_path} if on_disk else {})}
    weights, rooms = weight_bytes(heavy), []
    for place in places:
        least = least_bytes(heavy, place.name, places, **settings)
        for share in (0, 0.01, 0.1, 0.4, 0.8, 1.0, 1.2, 2.0, 4.0):
            unlimited = {each.memory_setting: 1 << 40 for each in places}
            limits = unlimited | {place.memory_setting: least + int(share * weights)}
            plan = drawn(heavy, places, **settings, **limits).plan
            assert plan.memory.fits()
            assert plan.kv_room.tokens >= 128
            rooms.append(plan.kv_room.tokens)
            if plan.kv_room.tokens > 128:
                assert all(plan.memory.need(place) <= limit for place, limit in plan.limits.items())
    assert max(rooms) == 64 * 128


def test_half_of_what_nobody_needs_is_left_to_other_models_where_no_setting_limits_it(
    light: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = drawn(light, ONE_PLACE, kv_tokens=64 * 1024).plan.memory.need("host")
    limit = usual + (64 << 20)
    monkeypatch.setattr("pipeline.engine.plan.SPARE_SHARE", 0.01)
    rooms = [
        drawn(light, ONE_PLACE, int(limit / 0.99) + 1, **settings).plan
        for settings in ({}, {"host_memory": limit})  # type: ignore[arg-type]
    ]
    shared, told = (plan.memory.need("host") - usual for plan in rooms)
    assert 0.9 * (32 << 20) < shared <= 32 << 20
    assert 0.9 * (64 << 20) < told <= 64 << 20


def test_blocks_stay_on_a_device_that_has_room_and_move_only_where_that_pays(heavy: Path) -> None:
    least, weights = least_bytes(heavy, "device", TWO_PLACES), weight_bytes(heavy)
    for share, moving in ((4.0, False), (2.0, False), (0.3, True)):
        plan = drawn(heavy, TWO_PLACES, **CONTEXT, gpu_memory=least + int(share * weights)).plan
        assert bool(plan.kv.moving) == moving, share
        assert plan.kv_room.tokens >= 32 * 128


@pytest.mark.parametrize("places", [ONE_PLACE, TWO_PLACES], ids=len)
def test_nothing_moves_for_requests_that_are_longer_than_usual(
    places: Sequence[Place], heavy: Path, tmp_path: Path
) -> None:
    """Neither to a device nor from a disk, though there is room for all of them, and no weights give way."""
    settings: dict[str, Any] = {
        "residency": False,
        "max_tokens_per_pass": 512,
        "kv_disk": tmp_path if len(places) == 1 else None,
    }
    usual = drawn(heavy, places, **settings, kv_tokens=64 * 1024).plan.memory.need(places[-1].name)
    plan = drawn(heavy, places, **settings, **{places[-1].memory_setting: int(1.01 * usual)}).plan
    assert not plan.kv.moving
    assert 64 * 1024 <= plan.kv_room.tokens < 65 * 1024


def test_states_have_room_for_as_many_requests_as_tokens_are_for(tmp_path: Path) -> None:
    shape = {"layers": 4, "hidden_size": 128, "ffn_size": 256, "heads": 2, "kv_heads": 1, "head_dim": 64}
    make_checkpoint(tmp_path / "hybrid", "qwen3.5-27b", vocabulary_size=300, **shape)

    def room(nbytes: int = 1 << 40, **settings: Any) -> tuple[ModelPlan, StateRoom]:
        plan = drawn(tmp_path / "hybrid", ONE_PLACE, nbytes, **{**CONTEXT, **settings}).plan
        assert plan.state_room is not None
        return plan, plan.state_room

    roomy, states = room()
    assert (roomy.kv_room.tokens, states.requests, states.snapshots) == (64 * 128, 64, 8)
    held = {one.holder: one.nbytes for one in roomy.memory.holdings if one.holder.startswith(("recurrent", "state"))}
    slots = 64 * 3
    slot_bytes = held["recurrent state of 3 layers"] // slots
    assert slot_bytes > 48 * 128 * 128 * 4
    assert held == {"recurrent state of 3 layers": slots * slot_bytes, "state snapshots of 3 layers": 24 * slot_bytes}
    assert states.nbytes == sum(held.values())
    least = room(kv_tokens=128, max_requests=1, residency=False)[0].memory.need("host")
    short, fewer = room(host_memory=least + 60 * slot_bytes)
    assert short.memory.fits()
    assert fewer.requests == short.kv_room.tokens // 128 < 25
    assert (fewer.requests, fewer.snapshots) >= (2, 2)
    assert room(state_snapshots=0)[1] == StateRoom(64, 0, slots * slot_bytes)
    assert room(kv_tokens=256)[1].requests == 64, "as many as may run, where a setting says how many tokens there are"


def test_a_command_with_one_request_leaves_memory_to_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(BUNDLED), "--prompt", "A", "--max-new-tokens", "1", "--device", "cpu"]) == 0
    said = re.search(r"^kv room +(.*)$", "".join(capsys.readouterr()), re.M)
    assert said
    assert said[1].startswith("1,024 tokens in ")
    assert "one request (max_requests) of a whole context" in said[1]
