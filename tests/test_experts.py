"""A model whose experts move one by one: the same bits wherever they lie, and every slot comes back."""

import functools
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.cases import EVERYTHING
from support.expert_answers import (
    EXPERTS,
    LAYERS,
    NEW_TOKENS,
    Answer,
    answers_to,
    leave_at_steps,
    said_by,
    save_mixture,
)
from support.expert_slots import all_slots_are_back

from actors.core import expert_cache
from actors.core.event import Event
from actors.core.expert_store import ExpertStore
from actors.core.message import GroupKey
from pipeline import Model
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.memory import HostMemory
from pipeline.generation import expert_work
from pipeline.generation.expert_work import ExpertWork
from pipeline.generation.micro_batches import MicroBatch
from pipeline.generation.pass_gate import PassGate
from pipeline.reading.source import CheckpointSource
from pipeline.tools.commands.run_lines import opening_lines

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
DRAW = random.Random(5)
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(length)] for length in (1, 23, 9, 40)]
PLACES: list[dict[str, Any]] = [
    {"device": device, "gpu_experts": slots, "host_experts": EXPERTS * LAYERS + 1 - slots}
    for device in ("cpu", "cpu-copy")
    for slots in (range(1, EXPERTS * LAYERS + 1) if EVERYTHING else (1, 5, 20))
]
RUNS: list[dict[str, Any]] = [
    *PLACES,
    {"device": "cpu-copy", "gpu_experts": 6, "host_experts": 1, "expert_cache": "none", "residency": False},
    {"device": "cpu-copy", "gpu_experts": 6, "host_experts": 9, "expert_cache": "lfu", "policy": "history1"},
    {"device": "cpu-copy", "gpu_experts": 4, "policy": "stage3", "gpu_groups": 6, "max_tokens_per_pass": 16},
    {"device": "cpu", "gpu_experts": 4, "max_requests": 1, "gpu_groups": 1, "residency": False},
    {"device": "cpu-copy", "gpu_experts": 8, "host_experts": 9, "policy": "stage2", "lookahead": True},
]
answers = functools.partial(answers_to, PROMPTS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mixture(tmp_path_factory.mktemp("experts"), dense_layers=[1])


@pytest.fixture(scope="module")
def said(checkpoint: Path) -> list[Answer]:
    """What all are answered together when every expert stays."""
    return said_by(checkpoint, PROMPTS, device="cpu", context_tokens=64)


@pytest.mark.anyio
@pytest.mark.parametrize("settings", RUNS, ids=str)
async def test_where_experts_lie_changes_no_bit(checkpoint: Path, said: list[Answer], settings: dict[str, Any]) -> None:
    async with Model.open(checkpoint, context_tokens=64, **settings) as model:
        assert await answers(model) == said
        assert await answers(model) == said
        assert all_slots_are_back(model)
        read = model.statistics().bytes_read
        assert read > 0


@pytest.mark.anyio
async def test_slots_for_what_moves_are_counted_by_bytes(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_cache, "WINDOW_BYTES", 5 * 3 * 48 * 36 * torch.float32.itemsize)
    async with Model.open(checkpoint, device="cpu", context_tokens=64, gpu_experts=20) as model:
        line = model.runtime.expert_line
        assert line is not None
        for _ in range(3):
            await answers(model)
        assert line.store.kept() == {"expert host": 20 - 5}


@pytest.mark.anyio
async def test_a_cpu_computes_what_is_there_in_portions(
    checkpoint: Path, said: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than one waits behind the one that is computed: what comes is next."""
    launched, computed, sizes, waiting = 0, 0, set[int](), set[int]()
    compute, used, arrived = ExpertWork.compute, ExpertStore.used, ExpertStore.arrived

    def slow(work: ExpertWork, kind: Any, runs: Sequence[Any]) -> None:
        nonlocal computed
        sizes.add(len(runs))
        time.sleep(0.0005)
        compute(work, kind, runs)
        computed += 1

    def count(store: ExpertStore, messages: Sequence[Any], event: Event) -> None:
        nonlocal launched
        used(store, messages, event)
        launched += 1

    async def wait(store: ExpertStore, most: int | None = None) -> Sequence[Any]:
        waiting.add(launched - computed)
        return await arrived(store, most)

    monkeypatch.setattr(ExpertWork, "compute", slow)
    monkeypatch.setattr(ExpertStore, "used", count)
    monkeypatch.setattr(ExpertStore, "arrived", wait)
    monkeypatch.setattr(expert_work, "LAUNCH_BYTES", 2 * 3 * 48 * 36 * torch.float32.itemsize)
    async with Model.open(checkpoint, device="cpu", context_tokens=64) as model:
        assert await answers(model) == said
        assert await answers(model) == said
    assert sizes == {1, 2}
    assert max(waiting) == 1


def test_experts_say_what_transformers_says(checkpoint: Path, said: list[Answer]) -> None:
    reference = tiny_models.transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for prompt, (token_ids, _) in zip(PROMPTS, said, strict=True):
        assert [*token_ids] == tiny_models.greedy(reference, prompt, NEW_TOKENS).token_ids


@pytest.mark.anyio
@pytest.mark.parametrize("slots", [1, 4])
async def test_a_pass_reads_each_expert_once_for_all_requests(checkpoint: Path, said: list[Answer], slots: int) -> None:
    """Where there is room, the first of the next layer are read while attention is computed."""
    settings = {"device": "cpu", "gpu_experts": slots, "expert_cache": "none"}
    async with Model.open(checkpoint, context_tokens=64, **settings) as model:
        line = model.runtime.expert_line
        assert line is not None
        await answers(model)
        before, needed = groups_needed(model), used(line.store)
        assert await answers(model) == said
        expert_bytes = next(iter(line.room.catalog.host.values())).needed_bytes
        assert groups_needed(model) - before == (used(line.store) - needed) * expert_bytes
        assert (line.store.statistics().hints.useful > 0) == (slots > 1)


@pytest.mark.anyio
async def test_the_next_router_is_asked_beforehand(checkpoint: Path) -> None:
    settings = {"device": "cpu", "gpu_experts": 12}
    useful = []
    for lookahead in (False, True):
        async with Model.open(checkpoint, context_tokens=64, lookahead=lookahead, **settings) as model:
            assert model.runtime.expert_line is not None
            await model.generate([3], max_new_tokens=30, ignore_eos=True)
            hints = model.runtime.expert_line.store.statistics().hints
            useful.append(hints.useful)
            assert hints.asked == 0 or hints.useful > hints.wasted / 2
    assert useful[0] == 0 < useful[1]


@pytest.mark.anyio
@pytest.mark.parametrize("opens", [False, True])
async def test_the_next_router_is_asked_in_passes_that_a_gate_lets_through(
    opens: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = list[int](), list[tuple[float, int]]()

    def ask(gate: PassGate, rows: int) -> bool:
        asked.append(rows)
        return opens

    monkeypatch.setattr(PassGate, "opens", ask)
    monkeypatch.setattr(PassGate, "took", lambda gate, *what: told.append(what))
    async with Model.open(checkpoint, device="cpu-copy", context_tokens=64, gpu_experts=4, host_experts=8) as model:
        await model.generate([3], max_new_tokens=12, ignore_eos=True)
        assert model.runtime.expert_line is not None
        store = model.runtime.expert_line.store
        assert (store.statistics().hints.sent > 0) == opens
        assert len(asked) == len(told) == 12
        assert min(seconds for seconds, _ in told) > 0
        assert 0 < sum(reads for _, reads in told) == store.misses


@pytest.mark.anyio
async def test_reads_begin_before_what_is_there_is_launched(
    checkpoint: Path, said: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU launching takes a few tenths of a millisecond, in which the disk would stand still.

    And the thread that launches keeps the interpreter lock, which those that read need to begin.
    """
    steps: list[str] = []
    want, read_into, launch = ExpertStore.want, CheckpointSource.read_into, CpuDevice.launch
    hand_over = CheckpointSource.hand_over

    def wanted(self: ExpertStore, layer: int, experts: Sequence[int], **options: Any) -> int:
        reads = want(self, layer, experts, **options)
        steps.append("some are there" if 0 < reads < len(experts) else "others")
        return reads

    async def reading(self: CheckpointSource, key: GroupKey, buffer: HostMemory) -> None:
        steps.append("read")
        await read_into(self, key, buffer)

    def handed_over(self: CheckpointSource) -> None:
        steps.append("handed over")
        hand_over(self)

    def launched(self: CpuDevice, *arguments: Any, **options: Any) -> Event:
        steps.append("launched")
        return launch(self, *arguments, **options)

    monkeypatch.setattr(ExpertStore, "want", wanted)
    monkeypatch.setattr(CheckpointSource, "read_into", reading)
    monkeypatch.setattr(CheckpointSource, "hand_over", handed_over)
    monkeypatch.setattr(CpuDevice, "launch", launched)
    async with Model.open(checkpoint, device="cpu", context_tokens=64, gpu_experts=12) as model:
        assert await answers(model) == said
    some_are_there = [index for index, step in enumerate(steps) if step == "some are there"]
    assert some_are_there
    before_launch = [steps[index : steps.index("launched", index)] for index in some_are_there]
    assert all("read" in before and before[-1] == "handed over" for before in before_launch)


def groups_needed(model: Model) -> int:
    """The bytes of the weight groups that were read, without embedding rows."""
    return model.runtime.source.bytes_needed - model.runtime.source.rows.bytes_needed


def used(store: ExpertStore) -> int:
    """How many experts passes have used, each counted once for a pass, or have read ahead in vain."""
    statistics = store.statistics()
    return sum(one.experts for one in statistics.unions.values()) + statistics.hints.wasted


@pytest.mark.anyio
async def test_a_run_says_what_experts_there_are_before_it_begins(checkpoint: Path) -> None:
    settings = {"device": "cpu-copy", "gpu_experts": 5, "host_experts": 3}
    async with Model.open(checkpoint, context_tokens=64, **settings) as model:
        said = opening_lines(model)
    assert (
        "\nexperts    21 of 20.7 kB, of which a token uses 9; slots for 3 in host memory and 5 in device memory\n"
        in said
    )
    assert " 0 B  rows beside experts" not in said


@pytest.mark.anyio
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_where_experts_move_a_request_may_leave(checkpoint: Path, said: list[Answer], device: str) -> None:
    async with Model.open(checkpoint, context_tokens=64, device=device, gpu_experts=3, host_experts=5) as model:
        await leave_at_steps(model, PROMPTS[1], 1 if EVERYTHING else 9)
        assert await answers(model) == said
        assert all_slots_are_back(model)


@pytest.mark.anyio
@pytest.mark.parametrize("work", ["choose", "compute", "add_up"])
async def test_a_pass_fails_with_its_first_micro_batch(
    checkpoint: Path, said: list[Answer], work: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And is computed anew. In the last layer no later half of the first one tells of it."""
    whole, failed = getattr(ExpertWork, work), []

    def fails_once(self: ExpertWork, *arguments: Any) -> None:
        parts = [one for one in arguments if isinstance(one, MicroBatch)]
        first = parts[0].begin == 0 and parts[0].end < 72 if parts else True
        if first and not failed and _layer(arguments) == LAYERS:
            failed.append(work)
            raise RuntimeError("a kernel failed")
        whole(self, *arguments)

    monkeypatch.setattr(ExpertWork, work, fails_once)
    async with Model.open(checkpoint, context_tokens=64, device="cpu", gpu_experts=4, policy="stage3") as model:
        assert await answers(model) == said
    assert failed
    assert "a kernel failed" in caplog.text


def _layer(arguments: tuple[Any, ...]) -> int:
    """That of the group or of the first expert."""
    first = arguments[1][0][0] if isinstance(arguments[1], list) else arguments[0]
    return int(first.layer)
