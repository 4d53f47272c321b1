"""Graphs on a GPU: the same outputs as without, captured once for each number of rows, and replayed after that."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.repeated_work import until_the_table_is_seen

from pipeline import Model, Output
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.graphs import Graphs
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.section import Section

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("nothing_was_there_before")]
PROMPTS = [[1, 5, 9], [4, 3, 7, 11, 20, 8], [9], [31, 7], [2, 9, 8, 7]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often work was captured, and how often it was replayed."""
    counts: Counter[str] = Counter()
    capture, replay = Graphs._capture, Graphs.replay

    def count_capture(self: Graphs, key: Hashable, work: Callable[[], object]) -> bool:
        counts["captured"] += 1
        return capture(self, key, work)

    def count_replay(self: Graphs, key: Hashable) -> Callable[[], object] | None:
        found = replay(self, key)
        counts["replayed"] += found is not None
        return found

    monkeypatch.setattr(Graphs, "_capture", count_capture)
    monkeypatch.setattr(Graphs, "replay", count_replay)
    return counts


async def generate(model: Model) -> list[Output]:
    """Passes of five rows, four, and so on: requests end one after the other."""
    outputs = []
    for call in ({"logprobs": 3}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5}):
        several = [model.generate(p, max_new_tokens=4 + i, ignore_eos=True, **call) for i, p in enumerate(PROMPTS)]
        outputs += await asyncio.gather(*several)
    return outputs


def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = CudaDevice.launch

    def launch_one_by_one(
        self: CudaDevice, lane: str, work: Any, after: Any, repeats: Hashable | None = None, *, short: bool = False
    ) -> Any:
        return launch(self, lane, work, after, short=short)

    monkeypatch.setattr(CudaDevice, "launch", launch_one_by_one)


@pytest.mark.parametrize(
    "settings", [{}, {"policy": "stage3"}, {"policy": "current"}, {"batch_invariant": True}], ids=str
)
async def test_outputs_are_the_same_and_nothing_is_captured_twice(
    settings: dict[str, Any], tmp_path: Path, counted: Counter[str]
) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, 2)
    with pytest.MonkeyPatch.context() as patch:
        without_graphs(patch)
        async with Model.open(tmp_path, device="cuda", **settings) as model:
            expected = await generate(model)
    assert not counted
    async with Model.open(tmp_path, device="cuda", **settings) as model:
        assert await generate(model) == expected
        assert await generate(model) == expected
        captured, replayed = counted["captured"], counted["replayed"]
        assert captured > 0
        assert await generate(model) == expected
        assert counted["captured"] == captured, "none in steady state"
        assert counted["replayed"] - replayed > captured


async def test_groups_that_move_are_captured_in_each_slot(tmp_path: Path, counted: Counter[str]) -> None:
    """Three groups of each kind take turns in two slots."""
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, layers=2)
    settings: dict[str, Any] = {"device": "cuda", "residency": False}
    with pytest.MonkeyPatch.context() as patch:
        without_graphs(patch)
        async with Model.open(tmp_path, **settings) as model:
            expected = await generate(model)
    async with Model.open(tmp_path, **settings) as model:
        for _ in range(4):
            assert await generate(model) == expected
        (lane,) = [lane for name, lane in model.runtime.device._lanes._lanes.items() if lane._graphs._captured]
        captured = [key for key in lane._graphs._captured if key[0] in model.runtime.catalog.order]
        slots = defaultdict(set)
        for group, address, _ in captured:
            slots[group].add(address)
        assert slots.keys() == {*model.runtime.catalog.order}
        assert max(map(len, slots.values())) > 1
    assert counted["replayed"] > len(captured)


async def test_groups_that_stay_are_replayed_as_stretches(tmp_path: Path, counted: Counter[str]) -> None:
    """Up to 16 groups are one, beside the embedding and the choice of tokens."""
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, layers=12)
    settings: dict[str, Any] = {"device": "cuda"}
    with pytest.MonkeyPatch.context() as patch:
        without_graphs(patch)
        async with Model.open(tmp_path, **settings) as model:
            expected = await generate(model)
    async with Model.open(tmp_path, **settings) as model:
        assert [await generate(model) for _ in range(3)] == [expected] * 3
        replayed = []
        for tokens in (4, 4, 4, 9):
            before = counted["replayed"]
            await model.generate(PROMPTS[0], max_new_tokens=tokens, ignore_eos=True)
            replayed.append(counted["replayed"] - before)
        groups = len(model.runtime.catalog.order)
    assert replayed[3] - replayed[2] == 5 * (2 + -(-groups // 16))


@pytest.mark.parametrize("call", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}], ids=["greedy", "sampled"])
async def test_passes_that_begin_ahead_have_the_tokens_of_those_that_wait(
    call: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, layers=3)
    program_ahead, begun = Section.ahead, []

    def count(self: Section, pass_: GenerationPass) -> GenerationPass | None:
        following = program_ahead(self, pass_)
        begun.append(following is not None)
        return following

    async def answers(model: Model, **more: Any) -> list[Output]:
        calls = [model.generate(p, max_new_tokens=9 + 2 * i, **call, **more) for i, p in enumerate(PROMPTS)]
        return list(await asyncio.gather(*calls))

    async with Model.open(tmp_path, device="cuda") as model:
        monkeypatch.setattr(Section, "ahead", lambda self, pass_: None)
        expected = await answers(model, ignore_eos=True)
        stops = [expected[3].token_ids[5]]
        stopped = await answers(model, stop_token_ids=stops)
        await until_the_table_is_seen(model)
        monkeypatch.setattr(Section, "ahead", count)
        for _ in range(3):
            assert await answers(model, ignore_eos=True) == expected
            assert await answers(model, stop_token_ids=stops) == stopped
        assert model.statistics().kv_blocks.used == 0
    assert sum(begun) > 30


async def test_work_that_asks_the_device_is_launched_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    device = CudaDevice()
    numbers, seen = torch.arange(4, device="cuda"), []
    torch.cuda.synchronize()  # The lanes of the device do not wait for torch's own stream.
    for _ in range(4):
        await device.launch("compute", lambda: seen.append(int(numbers.add_(1).sum())), (), repeats="a sum").wait()
    await device.aclose()
    assert seen == [10, 14, 18, 22]
    assert sum("cannot be captured" in record.message for record in caplog.records) == 1
