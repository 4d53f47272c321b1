"""What a pass will take: closed forms where they hold, the plan of a machine that is not here, and measured rates."""

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.api import BUNDLED, Model
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.port import Device, Place
from pipeline.devices.sim import SimDevice
from pipeline.engine.residency import NOTHING_STAYS
from pipeline.errors import ConfigError, RequestError
from pipeline.formats.parts import KINDS
from pipeline.generation.blueprint import Blueprint, draw_up
from pipeline.generation.build import build
from pipeline.generation.pass_rates import PassRates
from pipeline.generation.program import GenerationPass, GenerationProgram
from pipeline.generation.section import Section
from pipeline.models.model_config import read_config
from pipeline.state.kv_room import PassBytes
from pipeline.tools.bench.floors import Floors
from pipeline.tools.bench.forecast import MeasuredCompute, Rates, ToldCompute, forecast, pass_timings
from pipeline.tools.bench.machine_rates import LARGER, _Computed, _computes, measure_rates
from pipeline.tools.bench.planning import GIGABYTE, balanced_tokens, plan_model

GPU = SimDevice(alignment_bytes=256, memory={"host": 10 * GIGABYTE, "device": GIGABYTE})


pytestmark = pytest.mark.usefixtures("short_measurements")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "checkpoint"
    make_checkpoint(out, "llama-3.2-1b", layers=12, hidden_size=256, ffn_size=512, vocabulary_size=1024)
    return out


def rates(disk: float = 1e9, h2d: float | None = None, per_byte: float = 0.0, per_token: float = 0.0) -> Rates:
    """Weights of two bytes each."""
    compute = MeasuredCompute({tokens: 2 * (per_byte + tokens * per_token) for tokens in (1, 1000)})
    return Rates(disk, h2d, dict.fromkeys(("attn", "ffn", "head"), compute))


def test_what_a_small_slice_of_the_head_costs_counts_by_its_bytes() -> None:
    """Launching takes as long for each: by the median of both, all of the head would take 0.27 s."""
    rounds = [_Computed({(1, "head.0"): 0.1, (1, "head.1"): 0.1}, 0.0)] * 3
    parameters = {(1, "head.0"): 100, (1, "head.1"): 300}
    rates = _computes({1: rounds, 2: rounds}, parameters)
    assert rates["head"].seconds(800, 400, 1) == pytest.approx(0.2)


def test_computing_is_a_line_through_the_nearest_batches() -> None:
    compute = MeasuredCompute({1: 1.0, 4: 1.3, 16: 3.7})
    assert [compute.seconds(5, 10, tokens) for tokens in (1, 4, 16)] == pytest.approx([10.0, 13.0, 37.0])
    assert compute.seconds(2, 1, 2) == pytest.approx(1.1)
    assert compute.seconds(2, 1, 10) == pytest.approx(2.5)
    assert compute.seconds(2, 1, 21) == pytest.approx(4.7)


def test_what_slows_each_other_takes_longer_together() -> None:
    shared = replace(rates(), read_slowdown=1.25, compute_slowdown=1.5)
    assert shared.contention_seconds(10.0, 4.0) == pytest.approx(6.0 * (1 - 1 / 1.25)), (
        "4 s become 6, all beside reading"
    )
    assert shared.contention_seconds(4.0, 10.0) == pytest.approx(5.0 * (1 - 1 / 1.5)), "4 s become 5"
    assert shared.contention_seconds(10.0, 0.0) == shared.contention_seconds(0.0, 10.0) == 0.0
    assert rates().contention_seconds(10.0, 10.0) == 0.0


def drawn_up(folder: Path, settings: Config, device: Device) -> Blueprint:
    with open_checkpoint(folder) as checkpoint:
        return draw_up(read_config(folder), checkpoint, settings, device)


def test_a_forecast_counts_it(checkpoint: Path) -> None:
    settings = Config(residency=False)
    drawn = drawn_up(checkpoint, settings, CpuDevice())
    told = [
        forecast(drawn.catalog, drawn.plan, settings, replace(rates(1e9, per_byte=1e-9), read_slowdown=times), 1)
        for times in (1.0, 2.0)
    ]
    assert told[1].pass_seconds == pytest.approx(1.5 * told[0].pass_seconds, rel=0.05)


def test_quantised_weights_move_as_stored_and_compute_as_decoded(checkpoint: Path, tmp_path: Path) -> None:
    """A token takes as many operations whatever the weights are stored in, though fewer bytes move."""
    packed = tmp_path / "packed"
    make_checkpoint(
        packed, "llama-3.2-1b", stored="int4", layers=12, hidden_size=256, ffn_size=512, vocabulary_size=1024
    )
    settings, compute = Config(residency=False, kv_tokens=4096), ToldCompute(1e12, None)
    numbers = Rates(1e9, 2e9, dict.fromkeys(KINDS, compute))
    computed: list[float] = []

    class Noting(PassRates):
        def seconds(self, moved: PassBytes, place: Place, computed_bytes: float) -> float:
            computed.append(computed_bytes)
            return super().seconds(moved, place, computed_bytes)

    told, chosen = [], []
    for folder in (checkpoint, packed):
        drawn = drawn_up(folder, settings, GPU)
        told.append(forecast(drawn.catalog, drawn.plan, settings, numbers, 8).resource_seconds)
        computed.clear()
        drawn.at_rates(Noting())
        chosen.append([*computed])
    assert told[0]["compute"] == told[1]["compute"]
    assert told[1]["disk"] < 0.6 * told[0]["disk"], "the head is as it was"
    assert chosen[0] == chosen[1]
    assert ToldCompute(1e12, 1e9).seconds(500, 1000, 1) == 500 / 1e9, "reading what is stored takes longer"


@pytest.mark.parametrize(("disk", "per_byte"), [(1e9, 0.1e-9), (1e9, 5e-9), (2e9, 0.3e-9)])
def test_the_slower_of_disk_and_computing_binds(disk: float, per_byte: float, checkpoint: Path) -> None:
    settings = Config(residency=False)
    drawn = drawn_up(checkpoint, settings, CpuDevice())
    told = forecast(drawn.catalog, drawn.plan, settings, rates(disk, per_byte=per_byte), 1)
    nbytes = sum(drawn.catalog.group_bytes("host").values())
    computed_bytes = 2 * sum(drawn.catalog.parameters().values())
    assert told.resource_seconds == pytest.approx({"disk": nbytes / disk, "compute": computed_bytes * per_byte})
    assert told.pass_seconds == pytest.approx(max(nbytes / disk, computed_bytes * per_byte), rel=0.02)
    assert told.binds == ("disk" if 1 / disk > per_byte else "compute")


def test_what_stays_is_neither_read_nor_sent(checkpoint: Path) -> None:
    settings = Config(host_memory="20MB", gpu_memory="20MB", context_tokens=64, max_requests=1, max_tokens_per_pass=8)
    drawn = drawn_up(checkpoint, settings, GPU)
    residency = drawn.plan.residency
    assert residency.stays("device")
    timings = pass_timings(drawn.catalog, drawn.plan, rates(1e9, 2e9), 1)
    for group in drawn.catalog.order:
        assert (timings.uploads[group] == 0.0) == (group in residency.stays("device"))
        assert (timings.reads[group] == 0.0) == (group in residency.arrived("host"))


@pytest.mark.usefixtures("nothing_was_there_before")
def test_more_memory_and_more_tokens_are_told(checkpoint: Path) -> None:
    room = {"host_memory": "9.2MB", "gpu_memory": "9.2MB", "context_tokens": 64, "max_requests": 1}
    settings = Config(**room, max_tokens_per_pass=8)
    numbers = rates(1e9, 2e9, per_byte=0.01e-9, per_token=0.001e-9)
    planned = plan_model(checkpoint, settings, GPU, numbers, 1)
    assert set(planned.otherwise) == {"1 GB more of host memory", "1 GB more of device memory", "4 tokens per pass"}
    host, on_device, tokens = planned.otherwise.values()
    assert planned.forecast.binds == "disk"
    assert host.binds == "H2D"
    assert host.pass_seconds == pytest.approx(planned.forecast.pass_seconds / 2, rel=0.2), (
        "and that takes half the time"
    )
    assert on_device.binds == "compute"
    assert on_device.pass_seconds < 0.1 * planned.forecast.pass_seconds
    assert tokens.tokens_per_second == pytest.approx(4 * planned.forecast.tokens_per_second, rel=0.01)
    balance = balanced_tokens(planned)
    assert balance is not None
    computed_bytes = 2 * sum(planned.drawn.catalog.parameters().values())
    moving_seconds = planned.read_bytes_per_pass / 1e9
    assert balance == pytest.approx((moving_seconds / computed_bytes - 0.01e-9) / 0.001e-9, rel=0.02)


def test_where_nothing_is_to_stay_the_forecast_tells_what_would_come_of_it(checkpoint: Path) -> None:
    planned = plan_model(checkpoint, Config(residency=False), GPU, rates(1e9, 2e9, 1e-11), 1)
    assert set(planned.otherwise) == {"what fits stays", "4 tokens per pass"}
    assert planned.otherwise["what fits stays"].pass_seconds < 0.1 * planned.forecast.pass_seconds


def test_where_all_stays_no_more_memory_helps(checkpoint: Path) -> None:
    planned = plan_model(checkpoint, Config(), GPU, rates(1e9, 2e9, 1e-9), 1)
    assert set(planned.otherwise) == {"4 tokens per pass"}
    assert planned.read_bytes_per_pass == 0
    assert balanced_tokens(planned) is None


def test_a_plan_that_does_not_fit_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="device memory: need"):
        plan_model(checkpoint, Config(), SimDevice.like(GPU, {"device": 1000}), rates(1e9, 2e9), 1)


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_rates_are_measured(device: str) -> None:
    said: list[str] = []
    found = await measure_rates(BUNDLED, Config(device=device), 2, said.append)
    assert 1e7 < found.disk_bytes_per_second < 1e11
    assert (found.h2d_bytes_per_second is not None) == (device == "cpu-copy")
    assert set(found.computes) == set(KINDS)
    for compute in found.computes.values():
        assert list(compute.parameter_seconds) == [2 * times for times in LARGER]
        seconds = list(compute.parameter_seconds.values())
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    assert found.begin_seconds > 0
    assert min(found.read_slowdown, found.compute_slowdown) >= 1
    if device == "cpu-copy":
        assert found.read_slowdown == found.compute_slowdown == 1, "measured where a CPU computes"
    assert said


async def test_many_tokens_are_computed_in_one_pass_each(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With KV room for the shorter prompts only, a pass would carry a part, and the next one the rest of it."""
    carried: list[int] = []
    begin = GenerationProgram.begin

    async def counting(program: GenerationProgram, section: Section) -> GenerationPass:
        pass_ = await begin(program, section)
        carried.append(sum(len(piece.token_ids) for piece in pass_.pieces))
        return pass_

    monkeypatch.setattr(GenerationProgram, "begin", counting)
    found = await measure_rates(checkpoint, Config(device="cpu"), 128, lambda text: None)
    for compute in found.computes.values():
        assert list(compute.parameter_seconds) == [128, 512], "more would take long and tell nothing"
    assert set(carried) == {128, 512}


async def test_few_requests_are_measured_with_what_they_can_have() -> None:
    """The bundled model has 1024 positions: no batch larger than that fits into one request."""
    found = await measure_rates(BUNDLED, Config(device="cpu", max_requests=1), 512, lambda text: None)
    assert list(found.computes["ffn"].parameter_seconds) == [128, 512]
    with pytest.raises(ConfigError, match="--batch-tokens: need at most 1023"):
        await measure_rates(BUNDLED, Config(device="cpu", max_requests=1), 1024, lambda text: None)


async def test_groups_that_share_memory_are_computed_with_numbers(tmp_path: Path) -> None:
    """Packed numbers that are taken for a plain head are no numbers, and a request that gets none fails."""
    make_checkpoint(tmp_path / "int4", "llama-3.2-1b", stored="int4", layers=2, hidden_size=256, vocabulary_size=4096)
    settings = Config(device="cpu", residency=False, context_tokens=32, max_requests=1)
    async with contextlib.aclosing(await asyncio.to_thread(build, tmp_path / "int4", settings)) as runtime:
        floors = Floors(runtime, NOTHING_STAYS)
        async with asyncio.timeout(30):
            assert len(await floors.decode_seconds(await floors.load(shared=True), 1, 3)) == 3


async def test_computing_that_needs_two_passes_is_no_floor(checkpoint: Path) -> None:
    settings = Config(device="cpu", residency=False, context_tokens=20, kv_tokens=20, max_requests=4)
    runtime = await asyncio.to_thread(build, checkpoint, settings)
    try:
        floors = Floors(runtime, NOTHING_STAYS)
        loaded = await floors.load()
        assert len(await floors.compute(loaded, [17])) == len(runtime.catalog.order)
        with pytest.raises(RequestError, match="need 34 tokens in one pass, have 17; set kv_tokens"):
            await floors.compute(loaded, [17, 17])
    finally:
        await runtime.aclose()


@pytest.mark.measures
async def test_a_forecast_is_near_what_is_measured() -> None:
    """Not to the percent: a pass of the bundled model takes some milliseconds, on a machine that others use too."""
    settings: dict[str, Any] = {"device": "cpu", "residency": False}
    found = await measure_rates(BUNDLED, Config(**settings), 1, lambda text: None)
    drawn = drawn_up(BUNDLED, Config(**settings), CpuDevice())
    told = await asyncio.to_thread(forecast, drawn.catalog, drawn.plan, Config(**settings), found, 1)
    async with Model.open(BUNDLED, **settings) as model:
        await model.generate([1], max_new_tokens=4, ignore_eos=True)
        started, before = time.perf_counter(), model.runtime.program.passes
        await model.generate([1], max_new_tokens=30, ignore_eos=True)
        seconds = (time.perf_counter() - started) / (model.runtime.program.passes - before)
    assert 0.3 < told.pass_seconds / seconds < 3
