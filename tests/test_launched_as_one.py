"""Groups that stay are computed as stretches: the same tokens, and whoever leaves or fails within one."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.group_places import settings_with_groups
from support.kv_places import settings_with_room

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import GroupKey, Message
from pipeline import Model, Output
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.section import Section
from pipeline.models import decoder

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS = 12
PROMPTS = [[1, 5, 9], [4, 3, 7, 11, 20, 8], [9], [31, 7]]
Launched = list[list[GroupKey]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)


@pytest.fixture
def stretches(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """The groups of each stretch. A CPU takes them for work that repeats, and does it anew."""
    launched: Launched = []
    stretch = Section.stretch

    def count(self: Section, pass_: GenerationPass, messages: Sequence[Message[Slot]]) -> Sequence[Event]:
        if ran := stretch(self, pass_, messages):
            launched.append([message.key for message in messages])
        return ran

    monkeypatch.setattr(CpuDevice, "repeated_rows", (2, 4, 8, 16))
    monkeypatch.setattr(decoder, "attention_launches", lambda layer, kv, rows: "alike")
    monkeypatch.setattr(Section, "stretch", count)
    return launched


async def generate(model: Model) -> list[Output]:
    """Passes of four rows, three, and so on: requests end one after the other."""
    calls = [model.generate(p, max_new_tokens=3 + i, ignore_eos=True, logprobs=2) for i, p in enumerate(PROMPTS)]
    return list(await asyncio.gather(*calls))


def with_kv_that_moves(checkpoint: Path, folder: Path) -> dict[str, Any]:
    shape: dict[str, Any] = {"context_tokens": 96, "kv_tokens": 3840, "device": "cpu"}
    room = settings_with_room(checkpoint, folder, 0, 9, **shape)
    return room | {"host_memory": room["host_memory"] + 900_000}  # for weights: less than a layer of KV blocks


@pytest.mark.parametrize(
    "settings",
    [
        lambda *_: {"device": "cpu-copy"},
        lambda checkpoint, _: settings_with_groups(checkpoint, 0.6, 0.2, device="cpu-copy"),
        lambda checkpoint, _: settings_with_groups(checkpoint, 0.0, 0.7, device="cpu"),
        with_kv_that_moves,
    ],
    ids=["all stay", "six tenths stay", "seven tenths stay", "KV blocks of six layers move"],
)
async def test_tokens_are_those_of_groups_that_move(
    settings: Callable[[Path, Path], dict[str, Any]], checkpoint: Path, tmp_path: Path, stretches: Launched
) -> None:
    async with Model.open(checkpoint, device="cpu", residency=False) as model:
        expected = await generate(model)
    assert not stretches
    async with Model.open(checkpoint, **settings(checkpoint, tmp_path)) as model:
        assert [await generate(model) for _ in range(2)] == [expected] * 2
        moving_kv, moving = model.runtime.cache.memory.placement.moving, model.runtime.moving_groups
    assert bool(moving_kv) == (settings is with_kv_that_moves)
    assert {len(groups) for groups in stretches} <= ({16, 10} if moving == 0 else {*range(2, 17)})
    launched = {key for groups in stretches for key in groups}
    assert {part for _, part in launched} >= {"attn", "ffn"}
    assert launched.isdisjoint((layer, "attn") for layer in moving_kv)


async def test_a_pass_goes_on_to_the_next_device_behind_a_stretch(checkpoint: Path, stretches: Launched) -> None:
    async with Model.open(checkpoint, device="cpu", residency=False) as model:
        expected = await generate(model)
    async with asyncio.timeout(20), Model.open(checkpoint, devices=["cpu"] * 2) as model:
        assert [await generate(model) for _ in range(2)] == [expected] * 2
    assert {layer for groups in stretches for layer, _ in groups} == {*range(LAYERS + 1)}


async def test_all_of_a_pass_is_launched_before_callers_have_the_tokens_of_the_one_before(
    checkpoint: Path, stretches: Launched
) -> None:
    async with Model.open(checkpoint, device="cpu-copy") as model:
        await generate(model)
        kept = model.runtime.embedding.kept
        async with asyncio.timeout(5):
            while kept is None or kept.rows < model.runtime.config.vocabulary_size:
                await asyncio.sleep(0.001)
        stretches.clear()
        tokens = model.stream(PROMPTS[0], max_new_tokens=4, ignore_eos=True)
        seen = [len(stretches) async for _ in tokens]
        assert seen == [4, 8, 8, 8], "two of each pass, and two of each of the next two but for that of the prompt"


async def test_whoever_leaves_waits_for_no_more_than_the_pass_that_is_launched(
    checkpoint: Path, stretches: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Model.open(checkpoint, device="cpu") as model:
        expected = await generate(model)
        call = asyncio.create_task(model.generate(PROMPTS[0], max_new_tokens=30, ignore_eos=True))
        stretches.clear()
        launch = CpuDevice.launch

        def leaves(device: CpuDevice, lane: str, work: Any, after: Any, repeats: Any = None) -> Event:
            if len(stretches) == 4 and repeats is not None and repeats[0] == model.runtime.catalog.order[0]:
                call.cancel()
            return launch(device, lane, work, after, repeats)

        monkeypatch.setattr(CpuDevice, "launch", leaves)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [len(groups) for groups in stretches] == [16, 10] * 3, "and no pass behind it"
        assert await generate(model) == expected


async def test_a_failure_within_a_stretch_names_its_first_group_and_spoils_nothing(
    checkpoint: Path, stretches: Launched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Model.open(checkpoint, device="cpu") as model:
        expected = await generate(model)
        ffn_half, left = decoder.ffn_half, [3 * LAYERS + 5]

        def fails_once(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise ValueError("failed once")
            return ffn_half(*arguments)

        monkeypatch.setattr(decoder, "ffn_half", fails_once)
        assert await generate(model) == expected
    assert left[0] < 0
    (failure,) = [message for message in caplog.messages if "failed once" in message]
    assert "compute_scheduler failed at layer 0 group 'attn'" in failure


async def test_a_recording_has_a_span_of_each_group_and_stretches_go_on_behind_it(
    checkpoint: Path, stretches: Launched
) -> None:
    async with Model.open(checkpoint, device="cpu") as model:
        expected, order = await generate(model), model.runtime.catalog.order
        stretches.clear()
        passes = model.runtime.program.passes
        async with model.recording() as trace:
            assert await generate(model) == expected
        assert not stretches
        spans = [span for span in trace.spans if (span.actor, span.what) == ("compute_scheduler", "work")]
        seqs = [span.seq for span in spans]
        assert seqs == [*range(seqs[0], seqs[0] + len(order) * (model.runtime.program.passes - passes))]
        assert [span.key for span in spans] == [order[seq % len(order)] for seq in seqs]
        assert await generate(model) == expected
        assert stretches
