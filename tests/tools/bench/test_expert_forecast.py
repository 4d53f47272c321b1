"""What experts add to a forecast: closed forms, and the plan of a model that has some, by recorded routing or none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.routed_checkpoint import CHOSEN, EXPERTS, LAYERS, save_experts

from actors.core.crew import Over
from actors.core.errors import ActorFailed
from actors.core.line import Line
from actors.expert_uploader import ExpertUploader
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.checkpoint_digest import checkpoint_digest
from pipeline.checkpoints.config_alone import config_alone
from pipeline.config import Config
from pipeline.devices.port import ONE_PLACE
from pipeline.devices.sim import SimDevice
from pipeline.formats.parts import EXPERT, KINDS
from pipeline.generation.expert_split import ProductSeconds, SplitRates
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.tools.bench import expert_passes as module
from pipeline.tools.bench.expert_forecast import ExpertSizes, LeftToCpu, with_experts
from pipeline.tools.bench.expert_passes import ExpertPasses, expert_passes
from pipeline.tools.bench.forecast import ExpertWaits, Forecast, Rates, ToldCompute
from pipeline.tools.bench.machine_rates import measure_rates
from pipeline.tools.bench.planning import Planned, plan_alone, plan_model
from pipeline.tools.commands.plan import lines
from pipeline.tools.routing.expert_demand import FLAT, ExpertDemand
from pipeline.tools.routing.recorded_routing import RecordedRouting
from tests.support.synthetic_routing import synthetic_routing

SIZES = ExpertSizes(nbytes=100, parameters=50, chosen=2)
DENSE = Forecast(1, 2.0, {"disk": 1.0, "compute": 1.5}, 2.0)
RATES = Rates(100.0, None, dict.fromkeys((*KINDS, EXPERT), ToldCompute(100.0, None)), begin_seconds=0.5)
"""An expert takes a second to read, and a second to compute."""


def demand(used: list[float], missed: list[float], *more: list[float]) -> ExpertDemand:
    """One pass."""
    return ExpertDemand(np.array([used]), [np.array([one]) for one in (missed, *more)], "")


def test_a_layer_computes_what_is_there_while_others_come() -> None:
    # Of three layers one has all; one reads 1 s while it computes 3 of 4; one reads 3 s and computes the last behind.
    found = with_experts(DENSE, RATES, demand([2, 4, 3], [0, 1, 3]), SIZES)
    assert found.resource_seconds == {"disk": 1 + 4, "compute": 1.5 + 9}
    assert found.pass_seconds == pytest.approx(max(2.0 + 1, 0.5 + 1.5 + 2 + 4 + 4))
    reads_dense = replace(DENSE, pass_seconds=20.0)
    assert with_experts(reads_dense, RATES, demand([2, 4, 3], [0, 1, 3]), SIZES).pass_seconds == 20.0 + 1
    measured = replace(RATES, expert_waits=ExpertWaits(0.5, 0.25))
    assert with_experts(DENSE, measured, demand([3, 2], [3, 0]), SIZES).pass_seconds == 2.0 + 3 + 2 + 1
    assert with_experts(DENSE, measured, demand([1], [0.5]), SIZES).pass_seconds == 2.0 + 1 + 0.25
    whole = replace(RATES, expert_waits=ExpertWaits(0.5, 0.25, 0.4, 0.2, beside_seconds=-0.1))
    copies = demand([3, 3, 3], [3, 1, 0], [3, 3, 2])
    expected = 2.0 + 3 * (3 - 0.1) + (0.5 + 2 * 0.25) + max(0.5, 0.4 + 0.2) + (0.4 + 0.2)
    assert with_experts(DENSE, whole, copies, SIZES).pass_seconds == pytest.approx(expected)


def test_what_the_host_has_comes_over_the_link() -> None:
    dense = replace(DENSE, resource_seconds={"disk": 1.0, "H2D": 0.0, "compute": 1.5})
    linked = replace(RATES, h2d_bytes_per_second=50.0)
    found = with_experts(dense, linked, demand([4], [1], [3]), SIZES)
    assert found.resource_seconds == {"disk": 2.0, "H2D": 6.0, "compute": 5.5}
    assert found.pass_seconds == pytest.approx(0.5 + 1.5 + 6 + 1)


def test_what_is_left_to_the_cpu_is_not_copied() -> None:
    dense = replace(DENSE, resource_seconds={"disk": 1.0, "H2D": 0.0, "compute": 1.5})
    linked = replace(RATES, h2d_bytes_per_second=50.0)
    rates = SplitRates(upload_seconds=2.0, read_seconds=1.0, product_seconds={1: 1.0, 2: 1.5}, rows_seconds=0.5)
    shared, every = LeftToCpu(rates, every=False), LeftToCpu(rates, every=True)
    # Of seven in two layers, one and six in host memory: of the six, the link brings two while the CPU computes four.
    found = with_experts(dense, linked, demand([4, 8], [0, 0], [1, 6]), SIZES, shared)
    assert found.resource_seconds["H2D"] == 2.0 * (0 + 2)
    assert found.pass_seconds == pytest.approx(0.5 + 1.5 + 4 + 8), "computing what is there binds"
    found = with_experts(dense, linked, demand([4, 8], [0, 0], [1, 6]), SIZES, every)
    assert found.resource_seconds["H2D"] == 0
    busy = replace(linked, computes={**linked.computes, EXPERT: ToldCompute(1e9, None)})
    assert with_experts(dense, busy, demand([4, 8], [0, 0], [1, 6]), SIZES, every).alone_seconds == pytest.approx(
        DENSE.alone_seconds + (0.5 + 1) + (0.5 + 6)
    )
    # Two tokens that use four experts: a row each. Those of a long prompt are copied.
    few = replace(dense, tokens=2)
    assert with_experts(few, busy, demand([2], [0], [2]), SIZES, every).alone_seconds == pytest.approx(2 + 0.5 + 3)
    many = replace(dense, tokens=65)
    assert with_experts(many, linked, demand([8], [0], [6]), SIZES, every).resource_seconds["H2D"] == 12.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_experts(tmp_path_factory.mktemp("experts"))


def recorded(checkpoint: Path, **more: object) -> RecordedRouting:
    routing = synthetic_routing(layers=len(LAYERS), experts=EXPERTS, chosen=CHOSEN, persistence=0.9, tokens=80)
    with open_checkpoint(checkpoint) as opened:
        digest = checkpoint_digest(opened)
    return replace(routing, model=replace(routing.model, **{"layers": LAYERS, "digest": digest, **more}))


TOLD = Rates(1e6, 4e6, dict.fromkeys((*KINDS, EXPERT), ToldCompute(1e12, None)), how="as told")


def plan(checkpoint: Path, routing: RecordedRouting | None, rates: Rates = TOLD, **settings: object) -> Planned:
    device = SimDevice(alignment_bytes=256, memory={"host": 10**11, "device": 10**11})
    return plan_model(checkpoint, Config(context_tokens=64, **settings), device, rates, 1, routing)  # type: ignore[arg-type]


def test_a_plan_says_what_a_larger_cache_would_buy(checkpoint: Path) -> None:
    slots = {"gpu_experts": 5, "host_experts": 9}
    flat, own = plan(checkpoint, None, **slots), plan(checkpoint, recorded(checkpoint), **slots)
    other = plan(checkpoint, recorded(checkpoint, digest="0" * 64), **slots)
    assert flat.experts is not None
    assert own.experts is not None
    assert other.experts is not None
    assert flat.experts.demand.how == FLAT
    assert flat.experts.demand.hit_rate < other.experts.demand.hit_rate
    assert own.forecast.pass_seconds < flat.forecast.pass_seconds
    assert own.experts.demand.hit_rate == pytest.approx(other.experts.demand.hit_rate, abs=0.1)
    seconds = [one.pass_seconds for one in own.experts.by_bytes.values()]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > 1.5 * seconds[-1]
    read = own.experts.read_bytes / 1e6
    assert read < own.forecast.pass_seconds < 1.4 * read, "where a layer reads nothing, it copies"
    printed = lines(own)
    assert "slots for 9 in host memory and 5 in device memory" in printed
    assert "balance" not in printed
    assert own.as_dict()["experts"]["hit_rate"] == own.experts.demand.hit_rate


def test_a_plan_says_what_the_cpu_would_bring(checkpoint: Path) -> None:
    slots = {"gpu_experts": 5, "host_experts": 1000}
    told = replace(TOLD, h2d_bytes_per_second=1e5)
    known = replace(told, products=ProductSeconds(0.0, {1: 1e-4}))
    assert not any("cpu_experts" in name for name in plan(checkpoint, None, rates=told, **slots).otherwise)
    without = plan(checkpoint, None, rates=known, **slots)
    found = plan(checkpoint, None, rates=known, **slots, cpu_experts="auto")
    assert without.otherwise["with cpu_experts=auto"] == found.forecast
    assert found.otherwise["with cpu_experts=False"] == without.forecast
    assert found.forecast.pass_seconds < 0.7 * without.forecast.pass_seconds
    assert found.experts is not None
    assert min(one.pass_seconds for one in found.experts.by_bytes.values()) <= found.forecast.pass_seconds


def test_without_weights_experts_have_the_sizes_that_they_would_have(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    alone = config_alone(tmp_path)
    assert alone is not None
    with open_checkpoint(checkpoint) as opened:
        assert {name: entry.length for name, entry in alone.checkpoint.tensors.items()} == {
            name: entry.length for name, entry in opened.tensors.items()
        }
    told = Rates(1e6, None, dict.fromkeys((*KINDS, EXPERT), ToldCompute(1e12, None)), how="as told")
    device = SimDevice(ONE_PLACE, alignment_bytes=256, memory={"host": 10**11})
    placed = plan_alone(alone, Config(context_tokens=64, gpu_experts=9), device, told, 1, recorded(checkpoint))
    assert isinstance(placed, Planned)
    assert placed.experts is not None
    assert placed.experts.demand.how.startswith("guessed")
    assert placed.experts.read_bytes < 6 * placed.experts.model.expert_bytes


async def test_experts_are_measured(checkpoint: Path, short_measurements: None) -> None:
    settings = Config(device="cpu-copy", context_tokens=64)
    rates = await measure_rates(checkpoint, settings, 1, lambda _: None)
    assert 0 <= rates.computes[EXPERT].seconds(1, 1000, 1) <= rates.computes[EXPERT].seconds(1, 1000, 16)
    assert rates.expert_waits is not None
    assert rates.expert_waits.first_seconds >= 0
    assert rates.expert_waits.next_seconds >= 0
    assert rates.products is not None
    assert rates.products.call + rates.products.each[1] > 0
    assert rates.products.each[1] <= rates.products.each[16]
    assert rates.expert_waits.first_copied_seconds >= rates.expert_waits.next_copied_seconds >= 0
    assert rates.expert_waits.beside_seconds != 0, "whole passes were measured"
    moving = replace(settings, residency=False)
    assert await expert_passes(checkpoint, moving, 1, lambda _: None) is None, "their weights move, too"
    passes = await expert_passes(checkpoint, replace(settings, max_requests=2), 2, lambda _: None)
    assert passes is not None
    assert (passes.layers, passes.used) == (len(LAYERS), CHOSEN), "both requests decode the same token"


@pytest.mark.parametrize(("copied", "used"), [(2.0, 3.0), (0.0, 1.0)])
async def test_a_layer_takes_what_whole_passes_took(
    copied: float, used: float, checkpoint: Path, short_measurements: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = len(LAYERS)

    async def passes(*_: object) -> ExpertPasses:
        return ExpertPasses(1.0, 1.0 + copied * layers, 1.0 + 3.0 * layers, 1.0 + 7.0 * layers, layers, used)

    monkeypatch.setattr("pipeline.tools.bench.machine_rates.expert_passes", passes)
    rates = await measure_rates(checkpoint, Config(device="cpu-copy", context_tokens=64), 1, lambda _: None)
    waits = rates.expert_waits
    assert waits is not None
    assert waits.first_seconds == pytest.approx(3.0)
    assert waits.next_seconds == pytest.approx(2.0 if used > 1 else 3.0)
    assert waits.first_copied_seconds + (used - 1) * waits.next_copied_seconds == pytest.approx(copied)
    assert rates.h2d_bytes_per_second is not None
    with open_checkpoint(checkpoint) as opened:
        experts = [entry.length for name, entry in opened.tensors.items() if ".experts." in name]
    mean = sum(experts) / layers / EXPERTS
    assert waits.next_copied_seconds == pytest.approx(copied and mean / rates.h2d_bytes_per_second, rel=0.05)


async def test_experts_are_read_or_one_of_them_or_copied_or_there(
    checkpoint: Path, short_measurements: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[float, int]] = []
    measured = module._pass_seconds

    async def counted(runtime: ModelRuntime, lines: Sequence[Line], over: Over, *counts: int) -> float:
        assert runtime.expert_line is not None
        room, before = runtime.expert_line.room, runtime.source.bytes_needed
        uploaders = [actor for line in lines for actor in line.actors if isinstance(actor, ExpertUploader)]
        uploaded = sum(actor.bytes_uploaded for actor in uploaders)
        seconds = await measured(runtime, lines, over, *counts)
        wanted = (1 + sum(counts[1:])) * len(LAYERS) * CHOSEN
        read = (runtime.source.bytes_needed - before) / (wanted * room.catalog.needed_bytes / room.count)
        copied = sum(actor.bytes_uploaded for actor in uploaders) - uploaded
        moved.append((read, copied // wanted))
        return seconds

    monkeypatch.setattr(module, "_pass_seconds", counted)
    await module.expert_passes(checkpoint, Config(device="cpu-copy", context_tokens=64), 1, lambda _: None)
    _, (read, copied), (read_one, copied_beside), (read_again, copied_again), there, *_ = moved
    assert (read, read_again, there) == (1, 0, (0, 0))
    assert read_one == pytest.approx(1 / CHOSEN, rel=0.05), "experts differ by a few bytes of padding"
    assert [copied_beside, copied_again] == pytest.approx([copied] * 2, rel=0.05)
    assert copied > 0


async def test_a_read_that_fails_ends_the_measurement(
    checkpoint: Path, short_measurements: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module._Nowhere, "read_into", fail)
    with pytest.raises(ActorFailed, match="the disk is gone"):
        await module.expert_passes(checkpoint, Config(device="cpu-copy", context_tokens=64), 1, lambda _: None)


def test_what_no_forecast_can_follow_from_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import main
    from pipeline.tools.routing.recorded_routing import write_routing

    write_routing(tmp_path / "routing", synthetic_routing(tokens=3))
    assert main(["plan", str(checkpoint), "--routing", str(tmp_path / "routing")]) == 1
    assert "need a recording of 8 decoded tokens or more, have 3" in capsys.readouterr().err
    for dense in ("bundled", "llama-3-8b"):
        assert main(["plan", dense, "--routing", str(tmp_path / "routing")]) == 1
        assert "says which experts passes use, of which" in capsys.readouterr().err
    assert main(["plan", str(checkpoint), "--check", "2"]) == 1
    assert "--check: need a model whose passes all read the same" in capsys.readouterr().err
