"""Experts that a device has not, computed by the CPU from their slots in host memory: the same tokens."""

import asyncio
import functools
import random
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.cases import EVERYTHING
from support.expert_answers import Answer, answers_to, leave_at_steps, said_by, save_mixture
from support.expert_slots import all_slots_are_back

from actors.core.event import Event
from pipeline import Model
from pipeline.checkpoints.written_formats import written_format
from pipeline.engine.expert_room import ExpertRoom
from pipeline.errors import ConfigError
from pipeline.generation import section_runtime
from pipeline.generation.expert_record import ExpertsRecord
from pipeline.generation.expert_split import ProductSeconds, SplitRates
from pipeline.generation.host_experts import HostExperts
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.generation.pass_gate import PassGate
from pipeline.generation.pass_rates import PassRates
from pipeline.server.metrics import SECTION_COUNTERS
from pipeline.system.sizes import human_bytes
from pipeline.tools.commands.run_lines import closing_lines
from pipeline.tools.convert.convert import convert

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
DRAW = random.Random(7)
PROMPTS = [[DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(length)] for length in (1, 23, 90)]
FEW: dict[str, Any] = {"device": "cpu-copy", "context_tokens": 128, "gpu_experts": 4, "host_experts": 9}
RUNS: list[dict[str, Any]] = [
    {},
    {"gpu_experts": 1, "host_experts": 1},
    {"gpu_experts": 6, "host_experts": 14, "policy": "stage3", "max_tokens_per_pass": 40},
    {"lookahead": True, "expert_cache": "lfu", "gpu_experts": 8},
]
answers = functools.partial(answers_to, PROMPTS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mixture(tmp_path_factory.mktemp("experts"))


def convert_to_bf16(source: Path, folder: Path) -> None:
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            save_file({name: one.bfloat16() for name, one in load_file(file).items()}, folder / file.name)
        else:
            (folder / file.name).write_text(file.read_text().replace("float32", "bfloat16"))


@pytest.fixture(scope="module")
def said(checkpoint: Path) -> list[Answer]:
    """What all are answered together when every expert stays on the device."""
    return said_by(checkpoint, PROMPTS, device="cpu-copy", context_tokens=128)


def experts_of(said: ModelStatistics) -> ExpertsRecord:
    assert said.experts is not None
    return said.experts


def experts(model: Model) -> ExpertsRecord:
    return experts_of(model.statistics())


@pytest.mark.anyio
@pytest.mark.parametrize("settings", RUNS, ids=str)
async def test_the_cpu_changes_no_answer(checkpoint: Path, said: list[Answer], settings: dict[str, Any]) -> None:
    """Here both are CPUs, so that no bit differs."""
    async with Model.open(checkpoint, **{**FEW, **settings}, cpu_experts=True) as model:
        assert await answers(model) == said
        assert await answers(model) == said
        assert all_slots_are_back(model)
        counted, line = experts(model), model.runtime.expert_line
        assert line is not None
        assert min(counted.on_cpu.values()) > 0
        planned = {one.holder: one.nbytes for one in model.runtime.plan.holdings if one.knob == "cpu_experts"}
        assert planned == HostExperts.sizes(model.runtime.config, model.runtime.dtype, model.runtime.pass_size.tokens)
        assert any(thread.name.startswith("penstock-experts") for thread in threading.enumerate())
        assert counted.bytes_not_uploaded == sum(counted.on_cpu.values()) * (3 * 36 * 48 * 4)
        asked = counted.hits["expert device"] + counted.misses["expert device"]
        assert counted.computed == {"expert device": asked, "expert host": sum(counted.on_cpu.values())}
        wanted = sum(one.experts for one in line.store.statistics().unions.values())
        assert sum(counted.computed.values()) == wanted
        half = model.runtime.only.section.expert_half
        assert half is not None
        assert half._host is not None
        pages = [weakref.ref(memory._pages) for memory in half._host._memory.values()]
        assert all(one() is not None for one in pages)
    assert all(one() is None for one in pages), "a closed model holds memory"
    assert not any(thread.name.startswith("penstock-experts") for thread in threading.enumerate())


@pytest.mark.anyio
@pytest.mark.parametrize("stored", ["bf16", "fp8"])
async def test_in_bf16_all_that_are_there_are_one_call(
    checkpoint: Path, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sums are in another order than those of torch. Of FP8 none has the scales of empty slots, which are timed.

    In bf16 it begins without kernels, and the loop must not stand still while they are compiled.
    """
    grouped = pytest.importorskip("pipeline.models.grouped_on_cpu")
    calls, multiply = list[int](), grouped.GroupedOnCpu.multiply

    def counted(self: Any, kind: Any, each: Sequence[Any], *arguments: Any) -> None:
        calls.append(len(each))
        multiply(self, kind, each, *arguments)

    monkeypatch.setattr(grouped.GroupedOnCpu, "multiply", counted)
    convert_to_bf16(checkpoint, folder := tmp_path / "bf16")
    if stored == "bf16":
        kept = tmp_path / "kept"
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(kept))
        monkeypatch.setattr("numba.config.CACHE_DIR", str(kept))
        grouped.cpu_experts.multiply.cache_clear()
    else:
        await asyncio.to_thread(convert, folder, folder := tmp_path / stored, written_format(stored))
    said = []
    for chosen in (False, True):
        async with Model.open(folder, **FEW, dtype="bfloat16", cpu_experts=chosen) as model:
            calls.clear()
            output = await model.generate(PROMPTS[1][:8], max_new_tokens=1, ignore_eos=True, logprobs=259)
            assert output.logprobs is not None
            said.append(output.logprobs[0])
    assert max(calls) > 1
    assert "one by one" not in caplog.text
    assert max(abs(said[0][token] - said[1][token]) for token in said[0]) < 0.05
    if stored == "bf16":
        stats = grouped.cpu_experts.multiply(grouped.cpu_experts.BF16, False, False).stats
        assert (len(stats.cache_hits), len(stats.cache_misses)) == (1, 0), "another process has compiled it"
        assert stats.cache_path.startswith(str(kept))


@pytest.mark.anyio
async def test_each_of_several_devices_leaves_some_to_the_cpu(checkpoint: Path, said: list[Answer]) -> None:
    settings = {**FEW, "device": "auto", "devices": ["cpu-copy", "cpu-copy"], "gpu_experts": 2}
    async with Model.open(checkpoint, **settings, cpu_experts=True) as model:
        assert await answers(model) == said
        assert min(experts(model).on_cpu.values()) > 0


@pytest.mark.anyio
@pytest.mark.parametrize(("upload_seconds", "all_of_them"), [(1.0, True), (0.0, False)])
async def test_rates_say_who_computes(
    checkpoint: Path,
    said: list[Answer],
    upload_seconds: float,
    all_of_them: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def rates(room: ExpertRoom, of_passes: PassRates, products: ProductSeconds) -> SplitRates:
        assert 0 < products.call + products.each[1] <= products.call + products.each[4] < 1
        return SplitRates(upload_seconds, 0.0, dict.fromkeys(products.each, 1e-6), 0.0)

    monkeypatch.setattr(section_runtime, "split_rates", rates)
    caplog.set_level("INFO", "penstock")
    async with Model.open(checkpoint, **FEW, cpu_experts="auto") as model:
        assert f"{1e3 * upload_seconds:.2f} ms to copy it; on the CPU 0.00 ms and, by rows" in caplog.text
        assert "experts on the CPU are multiplied one by one, which is slower" in caplog.text, "they are in fp32"
        assert await answers(model) == said
        counted = experts(model)
        if all_of_them:
            assert sum(counted.on_cpu.values()) > 0
        else:
            assert sum(counted.on_cpu.values()) == 0 < counted.misses["expert device"]


@pytest.mark.anyio
async def test_a_gate_is_asked_for_each_pass_and_told_what_it_took(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, ended, clock = HostExperts.begin, HostExperts.ended, time.perf_counter
    asked, told, begun, at = list[int](), list[float](), list[HostExperts](), list[float]()

    def noted(self: HostExperts, rows: int) -> None:
        begun.append(self)
        at.append(clock())
        begin(self, rows)

    async def noted_end(self: HostExperts) -> Event | None:
        multiplied = await ended(self)
        at.append(clock())
        return multiplied

    def opens(gate: PassGate, rows: int) -> bool:
        asked.append(rows)
        return False

    monkeypatch.setattr(PassGate, "opens", opens)
    monkeypatch.setattr(HostExperts, "begin", noted)
    monkeypatch.setattr(HostExperts, "ended", noted_end)
    monkeypatch.setattr(PassGate, "took", lambda gate, seconds: told.append(seconds))
    async with Model.open(checkpoint, **FEW, cpu_experts="auto", lookahead=False) as model:
        await model.generate(PROMPTS[1], max_new_tokens=4, ignore_eos=True)
        assert sum(experts(model).on_cpu.values()) == 0
        assert asked == [23, 1, 1, 1]
        passes = [at[first : first + 4] for first in range(0, 16, 4)]  # three layers each
        assert all(seconds > times[-1] - times[0] for seconds, times in zip(told, passes, strict=True))
        for layers in (3, 2, 3):  # a pass that is left amid its three layers tells nothing
            begin(begun[-1], 1)
            told.clear()
            for _ in range(layers):
                begun[-1].split(torch.zeros(1, 3, dtype=torch.int32), [3] + [0] * 6)
            begun[-1].end()
            assert len(told) == (layers == 3)


@pytest.mark.anyio
async def test_a_pass_of_many_rows_leaves_nothing_to_the_cpu(checkpoint: Path) -> None:
    for prompt, some in ((PROMPTS[2], False), (PROMPTS[1], True)):
        async with Model.open(checkpoint, **FEW, cpu_experts=True) as model:
            await model.generate(prompt, max_new_tokens=1)
            assert (sum(experts(model).on_cpu.values()) > 0) == some


@pytest.mark.anyio
async def test_a_request_may_leave_while_the_cpu_computes(checkpoint: Path, said: list[Answer]) -> None:
    async with Model.open(checkpoint, **FEW, cpu_experts=True) as model:
        await leave_at_steps(model, PROMPTS[1], 1 if EVERYTHING else 11)
        assert await answers(model) == said
        assert all_slots_are_back(model)


@pytest.mark.anyio
async def test_a_product_that_fails_ends_a_pass_which_is_computed_anew(
    checkpoint: Path, said: list[Answer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of a layer, behind which others come."""
    whole, firsts = HostExperts._multiply, list[int]()

    def fails_once(self: HostExperts, *arguments: Any) -> None:
        *_, place = arguments
        firsts.extend([place] * (place == 0))
        if place == 0 and len(firsts) == 4:
            raise RuntimeError("a product failed")
        whole(self, *arguments)

    async with Model.open(checkpoint, **FEW, cpu_experts=True) as model:
        monkeypatch.setattr(HostExperts, "_multiply", fails_once)
        assert await answers(model) == said
        assert all_slots_are_back(model)
    assert "a product failed" in caplog.text


def test_what_makes_no_sense_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cpu_experts: need True, False or 'auto', have 'yes'"):
        Model.open(checkpoint, cpu_experts="yes")
    with pytest.raises(ConfigError, match=r"^lookahead: need True, False or 'auto', have 1"):
        Model.open(checkpoint, lookahead=1)
    with pytest.raises(ConfigError, match=r"^cpu_experts=auto: .* leave it out, or batch_invariant"):
        Model.open(checkpoint, cpu_experts="auto", batch_invariant=True)


@pytest.mark.anyio
async def test_it_is_seen(checkpoint: Path, tmp_path: Path) -> None:
    async with Model.open(checkpoint, **FEW, cpu_experts=True) as model:
        before = model.statistics()
        async with model.report(tmp_path / "report.html"):
            await model.generate(PROMPTS[1], max_new_tokens=4, ignore_eos=True)
        after = model.statistics()
    count = sum(experts_of(after).on_cpu.values())
    said = f" read; {count} computed by the CPU, {human_bytes(count * 20736)} not copied\n"
    assert said in closing_lines(before, after, 1.0)
    assert after.busy_seconds["expert_cpu"] > 0
    assert SECTION_COUNTERS["expert_computed", "place"][1](after)["expert host"] == count
    report = (tmp_path / "report.html").read_text()
    assert f"; the CPU computed {count / sum(experts_of(after).computed.values()):.1%}; a layer" in report
    assert "experts CPU" in report


@pytest.mark.anyio
async def test_where_the_cpu_computes_anyway_it_is_said(
    checkpoint: Path, said: list[Answer], caplog: pytest.LogCaptureFixture
) -> None:
    async with Model.open(checkpoint, device="cpu", context_tokens=128, gpu_experts=5, cpu_experts="auto") as model:
        assert await answers(model) == said
        assert sum(experts(model).on_cpu.values()) == 0
    assert "cpu_experts=auto has no effect: what computes here is the CPU" in caplog.text
