"""Recurrent state and snapshots of it: whatever is shared, cut, moved or computed anew, no bit of an answer changes."""

import asyncio
import errno
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING
from support.family_models import CASES
from support.kv_places import settings_with_room

from actors.core.ports import Copy
from pipeline import ActorFailed, Model
from pipeline.engine.policies import POLICIES
from pipeline.generation.model_statistics import StateRecord
from pipeline.models import decoder
from pipeline.state.cell_layout import cells_of
from pipeline.state.spill_file import Region, SpillFile

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
DRAW = random.Random(7)
SYSTEM = [DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(50)]
PROMPTS = [
    [*SYSTEM[:shared], *(DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(own))]
    for shared, own in ((50, 0), (33, 20), (50, 9), (0, 5))
]
SETTINGS: dict[str, Any] = {"context_tokens": 112, "kv_tokens": 1120, "max_requests": 4}
RUNS: dict[str, dict[str, Any]] = {
    "shared": {},
    "one at a time": {
        "max_requests": 1,
        "state_snapshots": 1,
        "max_tokens_per_pass": 19,
        "gpu_groups": 1,
        "residency": False,
        "policy": "history1",
    },
    "in blocks, not shared": {
        "batch_invariant": True,
        "state_snapshots": 6,
        "max_tokens_per_pass": 40,
        "policy": "current",
        "queues": {"compute_scheduler": 5},
    },
    "moved": {"device": "cpu-copy", "policy": "stage2", "gpu_groups": 5, "max_tokens_per_pass": 30},
    "read": {"device": "cpu", "policy": "stage3"},
}
ROOM = {"moved": (2, 2), "read": (0, 2)}
"""Of the layers, as many as have room on the device and in host memory."""
for policy, device in itertools.product(POLICIES, ("cpu", "cpu-copy")) if EVERYTHING else ():
    RUNS[f"{policy} on {device}"] = {"policy": policy, "device": device, "gpu_groups": 6, "max_tokens_per_pass": 45}
    ROOM[f"{policy} on {device}"] = (2, 2)
Bits = tuple[tuple[int, ...], Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    tiny_models.save_model(tiny_models.randomised(CASES["qwen3_5_text"].config(), seed=3), folder, shards=1)
    return folder


async def samples(model: Model, prompt: list[int], n: int, seed: int = 5) -> list[Bits]:
    sampled = {"n": n, "seed": seed, "temperature": 1.0}
    outputs = await model.generate(prompt, max_new_tokens=10, ignore_eos=True, logprobs=2, **sampled)
    return [(output.token_ids, output.logprobs) for output in outputs]


async def answer(model: Model, prompt: list[int], **arguments: Any) -> list[int]:
    settings = {"max_new_tokens": 8, "ignore_eos": True, **arguments}
    return list((await model.generate(prompt, **settings)).token_ids)


def states(model: Model) -> StateRecord:
    found = model.statistics().recurrent_state
    assert found is not None
    return found


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> list[list[Bits]]:
    """Two samples of each prompt, one request at a time, and nothing shared."""

    async def main() -> list[list[Bits]]:
        async with Model.open(checkpoint, **SETTINGS) as model:
            found = [[(await samples(model, prompt, 1, seed))[0] for seed in (5, 6)] for prompt in PROMPTS]
            assert (states(model).hits, states(model).snapshots) == (0, 0)
            return found

    return asyncio.run(main())


@pytest.mark.parametrize("run", RUNS)
async def test_no_bit_changes(run: str, checkpoint: Path, alone: list[list[Bits]], tmp_path: Path) -> None:
    settings = {**SETTINGS, "share_prefixes": "not shared" not in run, **RUNS[run]}
    if run in ROOM:
        settings = settings_with_room(checkpoint, tmp_path, *ROOM[run], **settings)
    async with asyncio.timeout(30), Model.open(checkpoint, **settings) as model:
        placement = model.runtime.cache.memory.placement
        assert bool(placement.disk) == (run in ROOM)
        assert [await samples(model, prompt, 1) for prompt in PROMPTS] == [pair[:1] for pair in alone]
        assert await asyncio.gather(*(samples(model, prompt, 2) for prompt in PROMPTS)) == alone
        assert states(model).hits > 0
        assert (states(model).used, model.statistics().kv_blocks.used) == (0, 0)


async def test_a_conversation_computes_each_token_once_and_a_beginning_is_computed_twice_at_most(
    checkpoint: Path,
) -> None:
    async with Model.open(checkpoint, **SETTINGS) as model:

        async def computed(prompt: list[int], **arguments: Any) -> int:
            before = model.statistics().computed_tokens
            await answer(model, prompt, cache_scope="a", **arguments)
            return model.statistics().computed_tokens - before

        first = await answer(model, SYSTEM, max_new_tokens=30, cache_scope="a")
        assert await computed([*SYSTEM, *first, 5, 6], max_new_tokens=1) == 82 - 64
        beginnings = [[*SYSTEM[:40], token] for token in (7, 8, 9)]
        assert [await computed(prompt, max_new_tokens=1) for prompt in beginnings] == [41, 41 - 32, 41 - 32]
        assert states(model).hits == 3


async def test_what_fails_is_computed_anew_without_what_was_kept(
    checkpoint: Path, alone: list[list[Bits]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ffn_half, left = decoder.ffn_half, [1] * 3

    def failing(*arguments: Any) -> Any:
        if left and left.pop() == 2:
            raise OSError(errno.EIO, "Input/output error")
        return ffn_half(*arguments)

    monkeypatch.setattr(decoder, "ffn_half", failing)
    async with asyncio.timeout(30), Model.open(checkpoint, share_prefixes=True, **SETTINGS) as model:
        for computed in (6, 41):
            left[:] = [2] + [1] * computed
            assert await asyncio.gather(*(samples(model, prompt, 2) for prompt in PROMPTS)) == alone
            assert not left
        assert model.statistics().requests.failed == 0
        assert (states(model).used, model.statistics().kv_blocks.used) == (0, 0)


async def test_a_snapshot_that_cannot_be_read_ends_who_begins_with_it_and_is_never_used_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, bad = SpillFile._read, set[int]()

    def failing(self: SpillFile, region: Region, run: Copy, buffer: memoryview) -> None:
        if region.cell == "recurrent state" and bad & {*cells_of([run], region.cell_bytes)}:
            raise OSError(errno.EIO, "Input/output error")
        read(self, region, run, buffer)

    monkeypatch.setattr(SpillFile, "_read", failing)
    settings = settings_with_room(checkpoint, tmp_path, 0, 2, device="cpu", share_prefixes=True, **SETTINGS)
    async with asyncio.timeout(30), Model.open(checkpoint, **settings) as model:
        expected = [await answer(model, prompt) for prompt in (SYSTEM, [*SYSTEM, 7], PROMPTS[-1])]
        slots = model.runtime.admission.batcher.states
        assert slots is not None
        bad |= {slot for slot in slots._kept if slot == slots._found[next(iter(slots._found))]}
        calls = (answer(model, prompt) for prompt in (SYSTEM, [*SYSTEM, 7], PROMPTS[-1]))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in outcomes] == [ActorFailed, ActorFailed, list]
        bad.clear()
        assert [await answer(model, prompt) for prompt in (SYSTEM, [*SYSTEM, 7], PROMPTS[-1])] == expected
