"""Launches that a layer with experts shares: the attention with the router's choice, and slices of the head."""

import asyncio
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.written_models import write_model

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import GroupKey, Message
from pipeline import Model, Output
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.expert_half import ExpertHalf
from pipeline.generation.expert_work import ExpertWork
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.launches import HalfWork
from pipeline.generation.section import Section
from pipeline.models import decoder

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS = 3
PROMPTS = [[1, 5], [4, 3]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {
        "vocab_size": tiny_models.VOCABULARY_SIZE,
        "hidden_size": 48,
        "intermediate_size": 104,
        "moe_intermediate_size": 36,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
    }
    folder = tmp_path_factory.mktemp("experts")
    write_model(folder, {"model_type": "qwen3_moe", **shape})
    return folder


@pytest.fixture(autouse=True)
def repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes work of so many rows for work that repeats, and does it anew."""
    monkeypatch.setattr(CpuDevice, "repeated_rows", (2, 4))
    monkeypatch.setattr(decoder, "attention_launches", lambda layer, kv, rows: "alike")


async def generate(model: Model) -> list[Output]:
    calls = [model.generate(prompt, max_new_tokens=6, ignore_eos=True, logprobs=2) for prompt in PROMPTS]
    return list(await asyncio.gather(*calls))


@pytest.mark.parametrize("lookahead", [False, True])
async def test_a_choice_that_is_launched_with_the_attention_is_the_same(
    lookahead: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[int] = []
    stale: list[int] = []
    with_choice, compute = ExpertHalf.with_choice, ExpertWork.compute
    left = [20]

    def look(self: ExpertHalf, pass_: GenerationPass, layer: int, *half: Any) -> tuple[HalfWork, Hashable]:
        both = with_choice(self, pass_, layer, *half)
        if pass_.chosen_of == layer:
            shared.append(layer)
            stale.extend([layer] * (not self._stays[layer].at.is_leased))
        return both

    def fail_once(self: ExpertWork, *arguments: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError("lost")
        compute(self, *arguments)

    monkeypatch.setattr(ExpertHalf, "with_choice", look)
    async with Model.open(checkpoint, device="cpu-copy", residency=False) as model:
        expected = await generate(model)
    assert not shared
    settings = {"device": "cpu-copy", "gpu_experts": 5, "host_experts": 8, "lookahead": lookahead}
    async with Model.open(checkpoint, **settings) as model:
        assert await generate(model) == expected
        assert set(shared) == {*range(LAYERS)}
        monkeypatch.setattr(ExpertWork, "compute", fail_once)
        assert await generate(model) == expected
        assert left[0] < 0
    assert not stale, "groups of a new run are not there before they have come"


async def test_slices_of_the_head_are_launched_as_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[list[GroupKey]] = []
    stretch = Section.stretch

    def count(self: Section, pass_: GenerationPass, messages: Sequence[Message[Slot]]) -> Sequence[Event]:
        assert self.apart.isdisjoint(message.key for message in messages)
        if ran := stretch(self, pass_, messages):
            launched.append([message.key for message in messages])
        return ran

    async with Model.open(checkpoint, device="cpu-copy", residency=False) as model:
        expected = await generate(model)
    monkeypatch.setattr(Section, "stretch", count)
    async with Model.open(checkpoint, device="cpu-copy") as model:
        assert await generate(model) == expected
        slices = [key for key in model.runtime.catalog.order if key[0] == LAYERS]
    assert len(slices) > 1
    assert launched
    assert all(groups == slices for groups in launched)
