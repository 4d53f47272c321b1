"""What a program says repeats really does: the work that was first launched for a key serves every later pass."""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import pytest
from support import tiny_models

from actors.core.event import Event
from pipeline import Model, Output
from pipeline.devices.cpu import CpuDevice

PROMPTS = [[1, 5, 9], [4, 3, 7, 11, 20, 8], [9], [31, 7], [2, 9, 8, 7]]
CALLS = ({"logprobs": 3}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5})


async def generate(model: Model) -> list[Output]:
    """Passes of five rows, four, and so on: requests end one after the other."""
    outputs = []
    for call in CALLS:
        several = [model.generate(p, max_new_tokens=3 + i, ignore_eos=True, **call) for i, p in enumerate(PROMPTS)]
        outputs += await asyncio.gather(*several)
    return outputs


@pytest.mark.parametrize("policy", ["backpressure", "stage3"])
async def test_outputs_are_the_same_when_first_launches_are_repeated(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, 2)
    monkeypatch.setattr(CpuDevice, "repeated_rows", (1, 2, 4, 8, 16))
    async with Model.open(tmp_path, device="cpu", policy=policy) as model:
        expected = await generate(model)
    launch, recorded, counts = CpuDevice.launch, {}, Counter[str]()

    def repeat_the_first(
        self: CpuDevice, lane: str, work: Callable[[], object], after: Sequence[Event], repeats: Hashable = None
    ) -> Event:
        if repeats is not None:
            counts["repeated"] += (lane, repeats) in recorded
            work = recorded.setdefault((lane, repeats), work)
        return launch(self, lane, work, after)

    monkeypatch.setattr(CpuDevice, "launch", repeat_the_first)
    async with Model.open(tmp_path, device="cpu", policy=policy) as model:
        assert await generate(model) == expected
        known = len(recorded)
        assert await generate(model) == expected
        assert len(recorded) == known, "nothing is recorded in steady state"
    assert counts["repeated"] > known
