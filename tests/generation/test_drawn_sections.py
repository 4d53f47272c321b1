"""The plans of several sections: every layer in one of them, the same room in all, and memory that is divided."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models

from pipeline.checkpoints.config_alone import ConfigAlone, config_alone
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.cuda import CudaDevice
from pipeline.devices.port import ONE_PLACE, TWO_PLACES, Device
from pipeline.devices.sim import SimDevice
from pipeline.engine.dealing import hops
from pipeline.engine.plan import LOADED_LATER
from pipeline.errors import ConfigError
from pipeline.formats.parts import gives_logits
from pipeline.generation.blueprint import Blueprint, draw_up
from pipeline.generation.build import build
from pipeline.generation.drawn_sections import (
    at_rates,
    dealt_at_rates,
    draw_up_section,
    draw_up_sections,
    owners,
    shares_of,
)
from pipeline.generation.pass_rates import PassRates
from pipeline.system.promises import give_back, promise, promised_elsewhere

RATES = PassRates(3e9, 50e9)


def preset(name: str = "llama-3-8b") -> ConfigAlone:
    alone = config_alone(Path(name))
    assert alone is not None
    return alone


def devices(count: int, settings: dict[str, Any]) -> list[Device]:
    places, kind = (TWO_PLACES, CudaDevice) if "gpu_memory" in settings else (ONE_PLACE, CpuDevice)
    later = kind.libraries.whole
    return [SimDevice(places, alignment_bytes=kind.alignment_bytes, loads_later=later) for _ in range(count)]


def drawn(count: int, name: str = "llama-3-8b", **settings: Any) -> tuple[Blueprint, ...]:
    """Plans of a model for a machine that is not here."""
    alone = preset(name)
    return draw_up_sections(alone.model, alone.checkpoint, Config(**settings), devices(count, settings))


def held(one: Blueprint, place: str = "device") -> dict[str, int]:
    return {holding.holder: holding.nbytes for holding in one.plan.memory.held(place)}


@pytest.mark.usefixtures("nothing_was_there_before")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama-3-8b", {"host_memory": "20GB", "gpu_memory": "7GB", "max_requests": 4}),
        ("llama-3.2-1b", {"host_memory": "2500MB"}),
        ("mixtral-8x7b", {"host_memory": "80GB", "gpu_memory": "12GB", "kv_tokens": 4096}),
    ],
)
def test_sections_have_the_layers_of_the_model_once_and_the_same_room(name: str, settings: dict[str, Any]) -> None:
    alone = preset(name)
    whole = draw_up(alone.model, alone.checkpoint, Config(**{"kv_tokens": 4096, **settings}), *devices(1, settings))
    sections = drawn(2, name, **settings)
    first, second = sections
    assert 0 in first.part.layers
    assert sorted([*first.part.layers, *second.part.layers]) == list(range(alone.model.layers + 1))
    for one in sections:
        assert {layer for layer, _ in one.catalog.order} == one.part.layers
        assert one.catalog.order == tuple(key for key in whole.catalog.order if key[0] in one.part.layers)
        assert one.plan.kv_layouts.keys() == one.part.layers - {alone.model.layers}
        assert {*one.plan.kv.device, *one.plan.kv.moving} == one.plan.kv_layouts.keys()
        assert (one.experts is None) == (whole.experts is None)
        if one.experts is not None:
            assert {layer for layer, _ in one.experts.catalog.order} <= one.part.layers
        place = one.catalog.places[-1]
        assert ("embedding rows" in held(one, place)) == (one is first)
        has_head = any(gives_logits(part) for _, part in one.catalog.order)
        assert [name in held(one, place) for name in ("choices", "scores of prompts")] == [has_head] * 2
        assert one.part.computed_bytes == whole.part.computed_bytes
    for plans in (sections, at_rates(sections, RATES)):
        assert len({(one.plan.kv_room.tokens, one.plan.pass_size, one.plan.context_tokens) for one in plans}) == 1
        assert all(one.plan.memory.fits() for one in plans)


def test_host_memory_is_divided_and_gpu_memory_is_that_of_each(tmp_path: Path) -> None:
    settings = {"host_memory": "40GB", "gpu_memory": "7GB", "kv_tokens": 8192, "kv_disk": tmp_path}
    before = "Python, torch and what was there before"
    (alone,) = drawn(1, **settings)
    sections = drawn(4, **settings)
    disk_bytes = alone.plan.memory.available["disk"]
    for one in sections:
        have = one.plan.memory.available
        assert (have["host"], have["device"]) == (10 * 10**9, 7 * 10**9)
        assert 0.9 < 4 * have["disk"] / disk_bytes < 1.1
        assert 0.9 < 4 * held(one, "host")[before] / held(alone, "host")[before] < 1.1
        assert 4 * held(one, "host")[LOADED_LATER] == held(alone, "host")[LOADED_LATER]
        assert held(one)[LOADED_LATER] == held(alone)[LOADED_LATER], "each GPU has its own"
    assert ["tokenizer" in held(one, "host") for one in sections[1:]] == [False] * 3
    stays = [sum(len(one.plan.residency.stays(place)) for one in sections) for place in ("host", "device")]
    assert sum(stays) == len(alone.catalog.order), "what has no room in one has it in four"


def test_layers_that_stream_are_dealt_in_turn_and_those_that_stay_follow_one_another() -> None:
    streaming = drawn(2, host_memory="40GB", gpu_memory="7GB", kv_tokens=4096)
    owners = [int(layer in streaming[1].part.layers) for layer in range(32)]
    assert sum(one != other for one, other in itertools.pairwise(owners)) >= 24
    assert all(share.slot_bytes for share in shares_of(streaming, RATES))
    staying = drawn(2, host_memory="40GB", gpu_memory="14GB", kv_tokens=4096)
    assert max(staying[0].part.layers) + 1 == min(staying[1].part.layers)
    assert all(len(one.plan.residency.stays("device")) == len(one.catalog.order) for one in staying)
    assert ["embedding table" in held(one, "host") for one in staying] == [True, False]


def test_what_binds_all_decides_by_which_rate_layers_are_dealt() -> None:
    from_disk = shares_of(drawn(2, host_memory="8GB", gpu_memory="4GB", kv_tokens=4096), RATES)
    assert [share.bytes_per_second for share in from_disk] == [1.5e9, 1.5e9]
    from_host = shares_of(drawn(2, host_memory="40GB", gpu_memory="4GB", kv_tokens=4096), RATES)
    assert [share.bytes_per_second for share in from_host] == [50e9, 50e9]
    sections = drawn(2, host_memory="8GB", gpu_memory="4GB", kv_tokens=4096, max_tokens_per_pass=512)
    for one in sections:
        moving = one.plan.residency.moving_bytes("host", one.catalog.group_bytes("host"))
        assert one.plans.moved.read == 2 * moving, "what both read from one disk"
    nothing_stays = drawn(2, host_memory="40GB", gpu_memory="7GB", kv_tokens=4096, residency=False)
    assert [share.room_bytes for share in shares_of(nothing_stays, RATES)] == [0, 0]


def test_layers_are_dealt_anew_where_measured_rates_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = {"host_memory": "64GB", "gpu_memory": "24GB", "kv_tokens": 4096}
    found = drawn(4, "llama-3-70b", **settings)
    assert hops(owners(found)) == 4, "by a disk of 4 GB/s, to which links of 16 GB/s are much"
    for rates, changes in ((PassRates(1e9, 12e9), 4), (PassRates(14e9, 12e9), 80)):
        anew = dealt_at_rates(found, devices(4, settings), rates)
        assert hops(owners(anew)) == changes
        assert all(one.plan.memory.fits() for one in anew)
        assert len({one.plan.kv_room.tokens for one in anew}) == 1
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.generation.drawn_sections._fit", lambda drawn: False)
        assert hops(owners(dealt_at_rates(found, devices(4, settings), PassRates(14e9, 12e9)))) == 4
    assert len(dealt_at_rates(found[:1], devices(1, settings), RATES)) == 1
    tiny_models.save("llama_gqa_llama3", tmp_path)
    told: list[tuple[PassRates, list[Any]]] = []

    def note(drawn: Sequence[Blueprint], devices: Sequence[Device], rates: PassRates) -> tuple[Blueprint, ...]:
        told.append((rates, promised_elsewhere(devices[0].pools)))
        return dealt_at_rates(drawn, devices, rates)

    monkeypatch.setattr("pipeline.generation.build.dealt_at_rates", note)
    monkeypatch.setattr("pipeline.generation.build._measured_rates", lambda *_: RATES)
    runtime = build(tmp_path, Config(devices=["cpu"] * 2))
    for section in runtime.sections:
        section.device.free()
    assert told == [(RATES, [])], "what was promised before is not planned beside"


def test_a_shortage_says_which_device_needs_what_and_advice_makes_it_fit() -> None:
    small: dict[str, Any] = {"max_requests": 2, "max_tokens_per_pass": 512}
    with pytest.raises(
        ConfigError, match=r"^section 0 \(meta, \d+ layers\): host memory: need .*; section 1 \("
    ) as said:
        drawn(2, "llama-3.2-1b", host_memory="700MB", **small)
    advice = re.search(r"set host_memory to at least (\d+MB)", str(said.value))
    assert advice is not None
    drawn(2, "llama-3.2-1b", host_memory=advice[1], **small)


def test_more_devices_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most one for each of the model's 16 layers, have 17"):
        drawn(17, "llama-3.2-1b", host_memory="40GB")


def test_a_node_that_is_told_its_layers_keeps_to_what_all_have_agreed_on() -> None:
    alone, settings = preset("llama-3.2-1b"), Config(host_memory="8GB")
    (device,) = devices(1, {})
    layers = {1, 3, 16}
    best = draw_up_section(alone.model, alone.checkpoint, settings, device, layers)
    told = draw_up_section(alone.model, alone.checkpoint, settings, device, layers, 4096, 512)
    assert (told.plan.kv_room.tokens, told.plan.pass_size.tokens) == (4096, 512)
    assert best.plan.kv_room.tokens > 4096
    assert best.plan.kv_layouts.keys() == told.plan.kv_layouts.keys() == {1, 3}
    with pytest.raises(ConfigError, match=r"^host memory: need .*; set "):
        draw_up_section(alone.model, alone.checkpoint, settings, device, layers, 1 << 22, 512)


def test_devices_of_one_process_share_its_memory_and_what_it_promised() -> None:
    alone, settings = preset("llama-3.2-1b"), Config(kv_tokens=4096)
    (one,) = draw_up_sections(alone.model, alone.checkpoint, settings, [CpuDevice(copy=False)])
    pair = [CpuDevice(copy=False), CpuDevice(copy=False)]
    both = draw_up_sections(alone.model, alone.checkpoint, settings, pair)
    have = sum(found.plan.memory.available["host"] for found in both)
    assert 0.8 < have / one.plan.memory.available["host"] < 1.2
    other = CpuDevice(copy=False)
    for device, found in zip(pair, both, strict=True):
        promise(device, Path("model"), found.plan.memory)
    own = [sum(one.nbytes for one in found.plan.memory.holdings if one.knob) for found in both]
    try:
        assert [one.nbytes for one in promised_elsewhere(other.pools)] == own
        beside = draw_up_sections(alone.model, alone.checkpoint, settings, [other, CpuDevice(copy=False)])
        said = [sum(size for name, size in held(one, "host").items() if "promised" in name) for one in beside]
        assert said == [sum(nbytes // 2 for nbytes in own)] * 2, "of which each counts a half"
    finally:
        for device in pair:
            give_back(device)
    assert promised_elsewhere(other.pools) == []
