"""Triggered policies beside stages of the user's: what these did to a group stays, what they hold is counted."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.events import LostEvent

from actors.core.budget import Budget
from actors.core.event import Event
from pipeline import Message, Model, Mover, Slot, Stage
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.memory import HostMemory
from pipeline.engine.policies import POLICIES

pytestmark = pytest.mark.usefixtures("everything_moves")
TRIGGERED = [name for name, row in POLICIES.items() if row.triggered]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", made)
    return made


async def generate(folder: Path, **settings: Any) -> tuple[tuple[int, ...], int]:
    """Token ids, and how many groups were loaded again."""
    async with Model.open(folder, device="cpu-copy", **settings) as model:
        output = await model.generate(tiny_models.PROMPT, max_new_tokens=6, ignore_eos=True)
        return output.token_ids, model.statistics().groups_reloaded


class Doubles(Stage):
    """Changes the weights in host memory."""

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        message.at.buffer.tensor.view(torch.float32).mul_(2)
        return message


class Scales(Stage):
    """Changes the weights in another way whenever it is told so."""

    factor = 1.0

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        message.at.buffer.tensor.view(torch.float32).mul_(self.factor)
        return message


async def test_what_a_stage_makes_of_the_group_is_computed_though_it_is_not_what_it_was_before(folder: Path) -> None:
    async def answer(model: Model) -> tuple[int, ...]:
        await model.generate(tiny_models.PROMPT, max_new_tokens=1)  # takes what the line has read ahead
        return (await model.generate(tiny_models.PROMPT, max_new_tokens=6, ignore_eos=True)).token_ids

    stage, doubles = Scales(), {"disk_reader": [Doubles()]}
    async with Model.open(folder, device="cpu", residency=False, insert=doubles) as model:
        doubled = await answer(model)
    async with Model.open(folder, device="cpu", residency=False, insert={"disk_reader": [stage]}) as model:
        assert await answer(model) != doubled
        stage.factor = 2.0
        assert await answer(model) == doubled


class LosesCopies(CpuDevice):
    uploads = 0

    def upload(self, source: Any, target: Any, copies: Any, after: Any, vacant: Event | None = None) -> Event:
        self.uploads += vacant is not None
        lost = vacant is not None and self.uploads in (20, 40)
        return LostEvent() if lost else super().upload(source, target, copies, after, vacant)


async def test_loading_again_keeps_what_a_stage_made_of_the_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = await generate(folder)
    doubled, _ = await generate(folder, insert={"disk_reader": [Doubles()]})
    assert doubled != plain, "or the stage does not matter"
    monkeypatch.setattr("pipeline.devices.open.CpuDevice", lambda *_, **__: LosesCopies(copy=True))
    # So long that on a busy machine no copy that comes is taken for a lost one.
    policy = replace(POLICIES["stage2"], fallback_seconds=0.2)
    assert await generate(folder, insert={"disk_reader": [Doubles]}, policy=policy) == (doubled, 2)


class Unpacks(Mover):
    """Moves each group on into slots of its own, of which there are few."""

    def __init__(self, slots: int) -> None:
        cells = {kind: [HostMemory(1 << 20) for _ in range(slots)] for kind in ("attn", "ffn")}
        self.budget = Budget("unpacked", cells, time.perf_counter)

    async def move(self, message: Message[Slot], slot: Slot) -> Event:
        await self.landed(message)
        await self.vacated(message, slot)
        length = min(message.at.buffer.nbytes, slot.buffer.nbytes)
        slot.buffer.view[:length] = message.at.buffer.view[:length]
        return message.event


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("policy", TRIGGERED)
async def test_few_slots_behind_the_uploader_do_not_stop_a_policy(policy: str, slots: int, folder: Path) -> None:
    """A group that is not needed yet would take the slot of the one that is."""
    expected, _ = await generate(folder)
    mover = Unpacks(slots)
    tokens, _ = await generate(folder, policy=policy, gpu_groups=10, insert={"gpu_uploader": [mover]})
    assert tokens == expected


async def test_the_halves_of_micro_batches_have_compute_lanes_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes: list[str] = []
    launch = CpuDevice.launch

    def noting(self: CpuDevice, lane: str, *arguments: Any, **options: Any) -> Event:
        lanes.append(lane)
        return launch(self, lane, *arguments, **options)

    monkeypatch.setattr(CpuDevice, "launch", noting)
    await generate(folder, policy="stage3")
    assert set(lanes) == {"compute", "attn", "ffn"}
    lanes.clear()
    await generate(folder)
    assert set(lanes) == {"compute"}
