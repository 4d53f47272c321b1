"""Stages of the user's beside a GPU, where tensors lie otherwise in host memory than on the device. Needs a GPU."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models

from actors.core.budget import Budget
from actors.core.event import Event
from pipeline import Message, Model, Mover, Slot, Stage
from pipeline.devices.memory import HostMemory

pytestmark = pytest.mark.cuda


class Keeps(Stage):
    """Every tensor as it was last seen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: dict[tuple[int, str], dict[str, torch.Tensor]] = {}

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        tensors = self.catalog.tensors(message)
        self.seen[message.layer, message.group] = {short: tensor.cpu().clone() for short, tensor in tensors.items()}
        return message


class MovesOn(Mover):
    """Into host memory of the user's, before the upload."""

    def __init__(self, sizes: dict[str, int]) -> None:
        cells = {kind: [HostMemory(nbytes) for _ in range(2)] for kind, nbytes in sizes.items()}
        self.budget = Budget("moved on", cells, time.perf_counter)

    async def move(self, message: Message[Slot], slot: Slot) -> Event:
        await self.landed(message)
        await self.vacated(message, slot)
        length = min(message.at.buffer.nbytes, slot.buffer.nbytes)
        slot.buffer.tensor[:length].copy_(message.at.buffer.tensor[:length])
        return message.event


async def test_a_stage_sees_the_same_tensors_in_slots_of_the_users_and_on_the_device(tmp_path: Path) -> None:
    async def answer(**settings: Any) -> tuple[tuple[int, ...], dict[str, int]]:
        async with Model.open(tmp_path, device="cuda", residency=False, **settings) as model:
            output = await model.generate(tiny_models.PROMPT, max_new_tokens=6, ignore_eos=True)
            return output.token_ids, model.runtime.catalog.slot_bytes("host")

    tiny_models.save("llama_gqa_llama3", tmp_path)
    expected, sizes = await answer()
    before, after, there = Keeps("before"), Keeps("after"), Keeps("there")
    insert = {"disk_reader": [before, MovesOn(sizes), after], "gpu_uploader": [there]}
    assert await answer(insert=insert, checksums=True) == (expected, sizes)
    assert len(before.seen) > 1
    for key, tensors in before.seen.items():
        for seen in (after.seen[key], there.seen[key]):
            assert all(torch.equal(seen[short], tensor) for short, tensor in tensors.items()), key
