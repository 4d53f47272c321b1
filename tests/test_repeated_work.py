"""What a program says repeats really does: the work that was first launched for a key serves every later pass."""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models

from actors.core.event import Event
from pipeline import Model, Output
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.records import Records

PROMPTS = [[1, 5, 9], [4, 3, 7, 11, 20, 8], [9], [31, 7], [2, 9, 8, 7]]
CALLS = ({"logprobs": 3}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5})


async def generate(model: Model) -> list[Output]:
    """Passes of five rows, four, and so on: requests end one after the other."""
    outputs = []
    for call in CALLS:
        several = [model.generate(p, max_new_tokens=3 + i, ignore_eos=True, **call) for i, p in enumerate(PROMPTS)]
        outputs += await asyncio.gather(*several)
    return outputs


@pytest.mark.parametrize("settings", [{}, {"policy": "stage3"}, {"residency": False}], ids=str)
async def test_outputs_are_the_same_when_first_launches_are_repeated(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, 2)
    monkeypatch.setattr(CpuDevice, "repeated_rows", (1, 2, 4, 8, 16))
    async with Model.open(tmp_path, device="cpu", **settings) as model:
        expected = await generate(model)
    launch, recorded, counts = CpuDevice.launch, {}, Counter[str]()

    def repeat_the_first(
        self: CpuDevice,
        lane: str,
        work: Callable[[], object],
        after: Sequence[Event],
        repeats: Hashable = None,
        *,
        short: bool = False,
    ) -> Event:
        if repeats is not None:
            counts["repeated"] += (lane, repeats) in recorded
            work = recorded.setdefault((lane, repeats), work)
        return launch(self, lane, work, after)

    monkeypatch.setattr(CpuDevice, "launch", repeat_the_first)
    async with Model.open(tmp_path, device="cpu", **settings) as model:
        assert await generate(model) == expected
        known = len(recorded)
        assert await generate(model) == expected
        assert len(recorded) == known, "nothing is recorded in steady state"
    assert counts["repeated"] > known


def test_no_more_is_recorded_than_the_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuDevice, "repeated_rows", (1,))
    records = Records(CpuDevice(), groups=1, micro_batches=1)
    assert [records.admit(key) for key in ("one", "two", "three", "one")] == ["one", "two", None, "one"]
