"""`penstock plan MODEL --devices A,B`, and `--nodes N`."""

import argparse
import asyncio
from collections.abc import Callable, Sequence

from pipeline.checkpoints.config_alone import ConfigAlone
from pipeline.config import Config
from pipeline.devices.open import open_device, open_devices
from pipeline.devices.port import Device
from pipeline.devices.sim import SimDevice
from pipeline.errors import ConfigError
from pipeline.generation.blueprint import Blueprint
from pipeline.generation.drawn_sections import HOP_SECONDS as DEVICE_HOP_SECONDS
from pipeline.generation.pass_rates import DISK_BYTES_PER_SECOND, LINK_BYTES_PER_SECOND
from pipeline.system.sizes import human_bytes
from pipeline.system.table import print_json, rows_aligned
from pipeline.tools.bench.devices_planning import PlannedDevices, PlannedSection, plan_devices
from pipeline.tools.bench.forecast import Rates, ToldCompute
from pipeline.tools.bench.machine_rates import measure_rates
from pipeline.tools.bench.nodes_planning import HOP_SECONDS, Nodes, check_nodes, plan_nodes
from pipeline.tools.bench.planning import sized
from pipeline.tools.bench.sections_forecast import SectionsForecast, how_dealt
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import counted
from pipeline.tools.routing.recorded_routing import RecordedRouting

MEASURED_TOKENS = 16
"""A pass of one token for each request is measured with so many at most; more follow from that."""
LEFT_OUT = "KV blocks that move, and prompts"


def plan_several(
    options: argparse.Namespace,
    settings: Config,
    alone: ConfigAlone | None,
    told: tuple[SimDevice, Rates] | None,
    routing: RecordedRouting | None,
) -> None:
    """Plan and print. Raises ConfigError naming the option that can never work."""
    if options.nodes is not None:
        _plan_nodes(options, settings, alone, told, routing)
        return
    names, devices = _devices(settings, told)
    rates = told[1] if told else None
    if rates is None and alone is None:
        rates = _measured(options, settings.of_device(names[0]), options.batch_tokens)
    with sized(options.model, alone, settings) as (model, checkpoint, computed_from):
        given = (settings, devices, names, rates, options.batch_tokens, routing)
        planned = plan_devices(model, checkpoint, *given)
    if options.json:
        print_json({**planned.as_dict(), "sizes_computed_from": computed_from})
    else:
        print(device_lines(planned, computed_from))


def _plan_nodes(
    options: argparse.Namespace,
    settings: Config,
    alone: ConfigAlone | None,
    told: tuple[SimDevice, Rates] | None,
    routing: RecordedRouting | None,
) -> None:
    if settings.devices is not None:
        raise ConfigError(f"--nodes: each has one device here, have --devices {settings.devices}; leave one out")
    if options.batch_tokens != 1:
        raise ConfigError("--batch-tokens: passes over nodes carry a token of each request; say max_requests instead")
    if options.hop_seconds is not None and not options.hop_seconds > 0:
        raise ConfigError(f"--hop-seconds: need a number above 0, have {options.hop_seconds}")
    if told is None and alone is not None:
        gpu = "with a GPU --h2d-gbps and --gpu-memory too"
        need = f"give --disk-gbps, --tflops and --host-memory of a node, {gpu}"
        raise ConfigError(f"--nodes: without weights nothing can be measured here; {need}")
    progress = Progress()
    with sized(options.model, alone, settings) as (model, checkpoint, computed_from):
        check_nodes(options.nodes, model)
        if told is None:
            tokens = min(settings.max_requests, MEASURED_TOKENS)
            machine: tuple[Device, Rates] = open_device(settings.device), _measured(options, settings, tokens)
        else:
            machine = told
        asked = (options.nodes, options.hop_seconds)
        found = plan_nodes(model, checkpoint, settings, *machine, *asked, routing, progress.say)
    progress.clear()
    if options.json:
        print_json({"nodes": [one.as_dict() for one in found], "sizes_computed_from": computed_from})
    else:
        print(node_lines(found, options.nodes, machine[1], options.hop_seconds, computed_from))


def _devices(settings: Config, told: tuple[SimDevice, Rates] | None) -> tuple[Sequence[str], Sequence[Device]]:
    """Those that settings name, here or told of, by their names."""
    names = settings.devices or ()
    if told is None:
        opened = open_devices(settings.device, names)
        return [str(one.torch_device) for one in opened] if isinstance(names, str) else names, opened
    device, rates = told
    if isinstance(names, str):
        raise ConfigError(f"--devices: of a machine that is not here name each, as in cuda:0,cuda:1, have {names}")
    if names[0].startswith("cuda") and rates.h2d_bytes_per_second is None:
        raise ConfigError("--h2d-gbps: GPUs that are not here need it too; have no such option")
    return ["cuda:0" if name == "cuda" else name for name in names], [SimDevice.like(device, {}) for _ in names]


def _measured(options: argparse.Namespace, settings: Config, tokens: int) -> Rates:
    """What a device here reaches."""
    progress = Progress()
    rates = asyncio.run(measure_rates(options.model, settings, tokens, progress.say))
    progress.clear()
    return rates


def device_lines(planned: PlannedDevices, computed_from: str | None) -> str:
    """What several devices of one machine hold, and how long they take."""
    sections, drawn = planned.sections, planned.sections[0].drawn
    printed = [
        *_model_lines(drawn, computed_from),
        f"dealt      {how_dealt(planned.dealt)}, by {_dealt_by(planned.rates)}; host memory is divided among "
        f"{len(sections)} devices",
        f"kv room    {drawn.plan.kv_room}; in each for its own layers",
        f"pass size  {drawn.plan.pass_size}",
    ]
    if planned.rates is None or planned.forecast is None:
        printed.append("forecast   none: without weights nothing can be measured here; see --disk-gbps and the others")
    else:
        printed += [
            f"machine    {_rates(planned.rates)}; devices have a link each, and share the disk",
            f"forecast   {planned.forecast}",
            f"one alone  {'does not fit' if planned.alone is None else _beside(planned.forecast, planned.alone)}",
            f"binds      {_binds(planned.forecast)}",
            f"left out   {_left_out(planned.rates)}",
        ]
    first, *others = drawn.plan.slots
    places = [first, *others]
    columns: dict[tuple[str, str], Callable[[PlannedSection], str]] = {
        ("device", ""): lambda one: one.device,
        ("layers", ""): lambda one: f"{len(one.layers)}{' and the head' if one.has_head else ''}",
    }
    for place in reversed(places):
        columns["stay in", place] = lambda one, place=place: human_bytes(one.stay_bytes(place))  # type: ignore[misc]
    columns["a pass", "reads"] = lambda one: human_bytes(one.moving_bytes(first))
    for place in others:
        columns["a pass", "sends"] = lambda one, place=place: human_bytes(one.moving_bytes(place))  # type: ignore[misc]
    for place in places:
        columns["need in", place] = lambda one, place=place: _need(one, place)  # type: ignore[misc]
    return "\n".join([*printed, "", rows_aligned(sections, columns)])


def node_lines(
    found: Sequence[Nodes], count: int, rates: Rates, hop_seconds: float | None, computed_from: str | None
) -> str:
    """What so many nodes take, and other numbers of them."""
    asked = next(one for one in found if one.count == count)
    memory = asked.drawn.plan.memory.available
    have = " · ".join(f"{human_bytes(memory[place])} of {place} memory" for place in asked.drawn.plan.slots)
    hop = f"{hop_seconds or HOP_SECONDS:g} s" + ("" if hop_seconds else " and longer for many rows")
    printed = [
        *_model_lines(asked.drawn, computed_from),
        f"nodes      {count}, each with {have} · {_rates(rates)}; a hop to the next takes {hop}",
        f"dealt      {how_dealt(asked.dealt)}, {len(asked.drawn.plan.kv_layouts)} to a node, {asked.staying_share:.0%} "
        "of whose bytes are in its memory",
        f"kv room    {asked.drawn.plan.kv_room}; in each for its own layers",
        f"forecast   {asked.one}",
        f"binds      {_binds(asked.one)}",
        f"forecast   {asked.many}",
        f"binds      {_binds(asked.many)}",
        f"left out   {_left_out(rates)}",
    ]
    columns: dict[tuple[str, str], Callable[[Nodes], str]] = {
        ("nodes", ""): lambda one: str(one.count),
        ("one request", "s/token"): _fitting(lambda one: f"{one.one.pass_seconds:.3g}"),
        ("binds", ""): _fitting(lambda one: one.one.binds),
        ("many requests", ""): _fitting(lambda one: str(one.many.tokens)),
        ("together", "tokens/s"): _fitting(lambda one: f"{one.many.tokens_per_second:.3g}"),
        ("bind", ""): _fitting(lambda one: one.many.binds),
        ("in memory", "of weights"): _fitting(lambda one: f"{one.staying_share:.0%}"),
        ("hops", "per pass"): _fitting(lambda one: str(one.one.hops)),
    }
    short = [f"{counted(one.count, 'node')}: {one.shortage.partition(' (')[0]}" for one in found if one.shortage]
    return "\n".join([*printed, "", rows_aligned(found, columns), *short])


def _fitting(cell: Callable[[Nodes], str]) -> Callable[[Nodes], str]:
    return lambda one: "-" if one.shortage else cell(one)


def _model_lines(drawn: Blueprint, computed_from: str | None) -> list[str]:
    nbytes = sum(drawn.whole.layer_bytes)
    return [
        f"model      {drawn.model.family} · {drawn.model.layers} layers · {human_bytes(nbytes)}",
        *([] if computed_from is None else [f"sizes      computed, without weights, from {computed_from}"]),
    ]


def _rates(rates: Rates) -> str:
    h2d = "" if rates.h2d_bytes_per_second is None else f" · H2D {human_bytes(rates.h2d_bytes_per_second)}/s"
    return f"disk {human_bytes(rates.disk_bytes_per_second)}/s{h2d}"


def _dealt_by(rates: Rates | None) -> str:
    """The rates that decide how layers are dealt."""
    disk, link = human_bytes(DISK_BYTES_PER_SECOND), human_bytes(LINK_BYTES_PER_SECOND)
    known = f"assumed rates, disk {disk}/s and H2D {link}/s" if rates is None else "the rates below"
    return f"{known}, and {DEVICE_HOP_SECONDS * 1e3:g} ms for a hop (assumed)"


def _left_out(rates: Rates) -> str:
    """What the forecast does not count, with what is not known of a machine that is not here."""
    told = [one for one in rates.computes.values() if isinstance(one, ToldCompute)]
    endless = any(one.bytes_per_second is None for one in told)
    return "reading weights from memory (say --memory-gbps), KV blocks that move, and prompts" if endless else LEFT_OUT


def _beside(several: SectionsForecast, alone: SectionsForecast) -> str:
    return f"{alone}, {alone.pass_seconds / several.pass_seconds:.2f} x as long"


def _binds(one: SectionsForecast) -> str:
    seconds = " · ".join(f"{name} {seconds:.3f} s" for name, seconds in one.resource_seconds.items())
    return f"{one.binds}: {seconds}"


def _need(one: PlannedSection, place: str) -> str:
    memory = one.drawn.plan.memory
    return f"{human_bytes(memory.need(place))} of {human_bytes(memory.available[place])}"
