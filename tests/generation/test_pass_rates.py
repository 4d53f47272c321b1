"""With which rates the size of a pass is chosen, and what depends on them: what a pass carries, never what is said."""

from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline import Model
from pipeline.checkpoints.config_alone import config_alone
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.port import ONE_PLACE, TWO_PLACES
from pipeline.devices.sim import SimDevice
from pipeline.generation.blueprint import Blueprint, draw_up
from pipeline.generation.pass_rates import PassRates


def drawn(model: str = "llama-3-8b", **settings: Any) -> Blueprint:
    """A plan of a model for a machine that is not here."""
    alone = config_alone(Path(model))
    assert alone is not None
    places, kind = (TWO_PLACES, CudaDevice) if "gpu_memory" in settings else (ONE_PLACE, CpuDevice)
    device = SimDevice(places, alignment_bytes=kind.alignment_bytes, block_rows=kind.block_rows)
    return draw_up(alone.model, alone.checkpoint, Config(context_tokens=8192, **settings), device)


def test_where_reading_binds_passes_are_smaller_as_their_room_displaces_weights() -> None:
    plans = drawn(host_memory="12GB", max_requests=1)
    fast, slow = (plans.at_rates(PassRates(disk)).plan for disk in (1e15, 1e9))
    assert 512 <= slow.pass_size.tokens < fast.pass_size.tokens
    assert slow.memory.fits()
    assert fast.memory.fits()


@pytest.mark.parametrize(
    ("settings", "rates", "seconds", "told"),
    [
        ({"host_memory": "6GB"}, PassRates(), 4e9, "disk 4 GB/s (assumed), computing 32 GB/s (assumed)"),
        ({"host_memory": "6GB"}, PassRates(1e9), 1e9, "disk 1 GB/s (measured), computing 32 GB/s (assumed)"),
        (
            {"host_memory": "40GB", "gpu_memory": "8GB"},
            PassRates(1e9, 2e9, "as told"),
            2e9,
            "link 2 GB/s (as told), computing 64 GB/s (assumed)",
        ),
        ({"host_memory": "40GB", "gpu_memory": "90GB"}, PassRates(1e9, 2e9), None, ""),
    ],
    ids=str,
)
def test_prompts_may_delay_others_as_long_as_a_pass_moves_and_the_plan_tells_by_which_rates(
    settings: dict[str, Any], rates: PassRates, seconds: float | None, told: str
) -> None:
    plans = drawn(**settings).at_rates(rates)
    size, moved = plans.plan.pass_size, plans.plans.moved
    assert size.rates == told
    if seconds is None:
        assert size.max_seconds == 0.5
    else:
        assert size.max_seconds == pytest.approx(max(moved.read, moved.sent) / seconds, rel=0.2)
        assert str(size).endswith(f"s (max_pass_seconds); reckoned with {told}")


@pytest.mark.parametrize(
    ("model", "gpu_memory", "link", "slots", "settings"),
    [
        ("llama-3.2-1b", "2GB", 90e9, 3, {}),
        ("llama-3.2-1b", "2GB", 55e9, 2, {}),  # two of each hold what is copied meanwhile
        ("llama-3-8b", "8GB", 90e9, 2, {}),
        ("llama-3.2-1b", "2GB", None, 2, {}),
        ("llama-3.2-1b", "2GB", 90e9, 2, {"gpu_groups": 4}),  # as is said
        ("llama-3.2-1b", "2GB", 90e9, 2, {"residency": False}),  # passes wait for the disk
        ("llama-3.2-1b", "2GB", 90e9, 2, {"kv_tokens": 46_000}),  # KV blocks would have to move
        ("llama-3.2-1b", "2GB", 1e12, 4, {}),  # a quarter of the memory
        ("llama-3.2-1b", "1.4GB", 90e9, 2, {}),
    ],
)
def test_there_are_as_many_slots_as_a_fast_link_fills_while_nothing_is_computed(
    model: str, gpu_memory: str, link: float | None, slots: int, settings: dict[str, Any]
) -> None:
    settings = {"host_memory": "40GB", "gpu_memory": gpu_memory, "max_requests": 1, **settings}
    plan = drawn(model, **settings).at_rates(PassRates(4e9, link)).plan
    assert {kind: count for kind, (count, _) in plan.slots["device"].items()} == {"attn": slots, "ffn": slots}
    assert plan.groups == 2 * slots
    assert plan.memory.fits()


@pytest.mark.parametrize(
    ("model", "memory", "slots", "settings"),
    [
        ("qwen2.5-0.5b", {"host_memory": "800MB"}, 4, {}),  # 64 MiB beside one that is computed
        ("qwen2.5-0.5b", {"host_memory": "720MB"}, 3, {}),  # a quarter of what is left
        ("qwen2.5-0.5b", {"host_memory": "800MB"}, 2, {"gpu_groups": 4}),  # as is said
        ("llama-3.2-1b", {"host_memory": "1600MB"}, 2, {}),  # two of each hold as much
        ("qwen2.5-0.5b", {"host_memory": "800MB", "gpu_memory": "300MB"}, 2, {}),
    ],
)
def test_on_a_cpu_small_groups_have_as_many_slots_as_keep_the_disk_busy(
    model: str, memory: dict[str, str], slots: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engine.plan.resident_bytes", lambda: 300 << 20)
    plan = drawn(model, **memory, max_requests=1, max_tokens_per_pass=16, kv_tokens=8192, **settings).plan
    place = list(plan.slots)[-1]
    assert {kind: count for kind, (count, _) in plan.slots[place].items()} == {"attn": slots, "ffn": slots}
    assert plan.groups == 2 * slots
    assert plan.memory.fits()


def test_of_a_small_model_no_slots_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would hold all that moves."""
    monkeypatch.setattr("pipeline.engine.plan.resident_bytes", lambda: 300 << 20)
    plan = drawn("qwen2.5-0.5b", host_memory="800MB", residency=False).plan
    assert plan.groups == 8
    write_small_checkpoint(tmp_path / "small", "qwen2.5-0.5b")
    assert drawn(str(tmp_path / "small" / "config.json"), host_memory="800MB", residency=False).plan.groups == 4


@pytest.mark.usefixtures("everything_moves")
async def test_a_link_is_measured_where_groups_are_sent_and_changes_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_checkpoint(tmp_path / "model", "llama-3.2-1b")
    found = []
    for link in (None, 1e3, 1e12):
        monkeypatch.setattr(CpuDevice, "link_bytes_per_second", lambda self, link=link: link)
        async with Model.open(tmp_path / "model", device="cpu-copy") as model:
            answer = await model.generate([1 + 7 * place % 290 for place in range(600)], max_new_tokens=3, logprobs=3)
            found.append((model.runtime.pass_size.max_seconds, answer))
    assert found[0][0] == found[2][0] == 0.5
    assert (found[1][0] or 0) > 100
    assert found[0][1] == found[1][1] == found[2][1]


async def test_slots_for_a_fast_link_change_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_checkpoint(tmp_path / "model", "llama-3.2-1b", layers=8)
    settings: dict[str, Any] = {"device": "cpu-copy", "context_tokens": 64, "max_tokens_per_pass": 64, "kv_tokens": 64}
    async with Model.open(tmp_path / "model", **settings) as model:
        settings["gpu_memory"] = model.runtime.plan.need("device") - 100_000
    found = {}
    for link in (None, 6.5e7):
        monkeypatch.setattr(CpuDevice, "link_bytes_per_second", lambda self, link=link: link)
        async with Model.open(tmp_path / "model", **settings) as model:
            answer = await model.generate([5, 7, 9], max_new_tokens=9, logprobs=3)
            found[model.runtime.describe()["gpu_groups"]] = answer
    assert found[4] == found[8]


async def test_nothing_is_measured_for_groups_that_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_checkpoint(tmp_path / "model", "llama-3.2-1b")
    monkeypatch.setattr(CpuDevice, "link_bytes_per_second", lambda self: pytest.fail("a link was measured"))
    async with Model.open(tmp_path / "model", device="cpu-copy") as model:
        assert model.runtime.moving_groups == 0
