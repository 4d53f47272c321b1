"""The blueprints of several sections: which layers each device computes, and what all of them have in common."""

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.dealing import Share, deal, pass_seconds
from pipeline.errors import ConfigError
from pipeline.generation.blueprint import Blueprint, Drawing, draw_up_fitting
from pipeline.generation.model_plan import ModelPlan
from pipeline.generation.part import Agreed
from pipeline.generation.pass_rates import DISK_BYTES_PER_SECOND, LINK_BYTES_PER_SECOND, PassRates
from pipeline.generation.what_would_fit import what_would_fit
from pipeline.models.model_config import ModelConfig

HOP_SECONDS = 100e-6
"""From the last launch of one section to the first of the next in one process, with the rows of a few requests."""
LEAST_GAIN = 1.02
"""What passes must gain for layers to be dealt anew: plans for 48 layers with experts take seconds."""


def draw_up_sections(
    model: ModelConfig, checkpoint: Checkpoint, settings: Config, devices: Sequence[Device]
) -> tuple[Blueprint, ...]:
    """One for each device, all with the same room for tokens; layers are dealt as their plans have room for them.

    Raises ConfigError or CheckpointError; what cannot fit is told device by device, with need, have, and settings with
    which it would fit.
    """
    if len(devices) == 1:
        return (draw_up_fitting(model, checkpoint, settings, devices[0]),)
    drawing = Drawing.of(model, checkpoint, settings)
    drawn = _drawn(drawing, devices)
    if any(device.pools for device in devices) and not _fit(drawn):
        gc.collect()  # a closed model may still be there, though no reference to it is left
        drawn = _drawn(drawing, devices)

    def changed(changes: Mapping[str, Any]) -> ModelPlan | None:
        try:  # a limit may be so low that nothing is left of it
            found = _drawn(replace(drawing, settings=replace(settings, **changes)), devices)
        except ConfigError:
            return None
        return max((one.plan for one in found), key=_lacking_bytes)

    if not _fit(drawn):
        short = [number for number, one in enumerate(drawn) if not one.plan.memory.fits()]
        said = [f"{_called(number, drawn, devices)}: {drawn[number].plan.memory.shortage()}" for number in short]
        most = max((one.plan for one in drawn), key=_lacking_bytes)
        raise ConfigError(f"{'; '.join(said)}; {what_would_fit(most, settings, changed)}")
    return drawn


def draw_up_section(
    model: ModelConfig,
    checkpoint: Checkpoint,
    settings: Config,
    device: Device,
    layers: Collection[int],
    kv_tokens: int | None = None,
    pass_tokens: int | None = None,
) -> Blueprint:
    """That of a process which computes only these layers, of which the one behind the last is the head.

    Others have agreed with it on room for KV blocks and passes of so many tokens; None is what is best for it alone.
    Raises ConfigError or CheckpointError, also where it does not fit.
    """
    drawing = Drawing.of(model, checkpoint, settings)

    agreed = None
    if kv_tokens is not None and pass_tokens is not None:
        agreed = Agreed(kv_tokens, "as all sections agreed", pass_tokens)

    def changed(changes: Mapping[str, Any]) -> ModelPlan | None:
        try:
            other = replace(drawing, settings=replace(settings, **changes))
            return other.drawn(device, layers, agreed=agreed).plan
        except ConfigError:
            return None

    drawn = drawing.drawn(device, layers, agreed=agreed)
    if not drawn.plan.memory.fits():
        raise ConfigError(f"{drawn.plan.memory.shortage()}; {what_would_fit(drawn.plan, settings, changed)}")
    return drawn


def at_rates(drawn: Sequence[Blueprint], rates: PassRates) -> tuple[Blueprint, ...]:
    """The same with plans that are best at these rates, with as much room for tokens in each as in the least."""
    each = [one.at_rates(rates) for one in drawn]
    if len(each) == 1:
        return tuple(each)
    agreed = _agreed(each)
    each = [replace(one, plan=one.plans.best(rates, agreed)) for one in drawn]
    slowest = max((one.plan.pass_size for one in each), key=lambda size: size.max_seconds or 0)
    return tuple(replace(one, plan=replace(one.plan, pass_size=slowest)) for one in each)


def dealt_at_rates(drawn: Sequence[Blueprint], devices: Sequence[Device], rates: PassRates) -> tuple[Blueprint, ...]:
    """The same; and layers that were dealt at assumed rates are dealt anew where passes gain by that at these."""
    first = drawn[0]
    if len(drawn) > 1:
        layer_bytes, shares = first.whole.layer_bytes, shares_of(drawn, rates)
        found = owners(drawn), deal(layer_bytes, shares, HOP_SECONDS, joined=first.model.joined_layers)
        seconds, best = (pass_seconds(layer_bytes, dealt, shares, HOP_SECONDS) for dealt in found)
        if seconds > LEAST_GAIN * best:
            drawing = Drawing(first.model, first.checkpoint, first.settings, first.whole)
            anew = at_rates(_dealt_to(drawing, devices, found[1]), rates)
            if _fit(anew):
                return anew
    return at_rates(drawn, rates)


def owners(drawn: Sequence[Blueprint]) -> tuple[int, ...]:
    """The section of each layer, of which the last is the head."""
    found = {layer: number for number, one in enumerate(drawn) for layer in one.part.layers}
    return tuple(found[layer] for layer in sorted(found))


def shares_of(drawn: Sequence[Blueprint], rates: PassRates) -> list[Share]:
    """What each section can do for a pass, whatever its layers, with that which is the slowest for all of them.

    That is the disk, of which those of one process have equal parts, or the links of the devices.
    """
    disk = (rates.disk or DISK_BYTES_PER_SECOND) / drawn[0].part.sections
    link = rates.link or LINK_BYTES_PER_SECOND
    whole = sum(sum(one.groups.layer_bytes) for one in drawn)
    rooms = [[_room_bytes(one, place) for place in one.plan.slots] for one in drawn]
    slots = [[_slot_bytes(one, place) for place in one.plan.slots] for one in drawn]
    read = whole - sum(map(sum, rooms))
    sent = whole - sum(room[-1] for room in rooms)
    if len(rooms[0]) > 1 and sent / link > read / disk:
        return [Share(room[-1], link, slot[-1]) for room, slot in zip(rooms, slots, strict=True)]
    return [Share(sum(room), disk, sum(slot)) for room, slot in zip(rooms, slots, strict=True)]


def _drawn(drawing: Drawing, devices: Sequence[Device]) -> tuple[Blueprint, ...]:
    """First with layers dealt evenly, whose plans tell the room of each device, and then as these have room.

    For the first it is enough that one device chooses the room for KV blocks, as that takes a second for 100 layers.
    """
    layer_bytes, joined = drawing.groups.layer_bytes, drawing.model.joined_layers
    evenly = deal(layer_bytes, [Share(0, 1.0, 2 * max(layer_bytes))] * len(devices), joined=joined)
    shares = shares_of(_dealt_to(drawing, devices, evenly, roughly=True), PassRates())
    dealt = deal(layer_bytes, shares, HOP_SECONDS, joined=joined)
    return at_rates(_dealt_to(drawing, devices, dealt), PassRates())


def _dealt_to(
    drawing: Drawing, devices: Sequence[Device], dealt: Sequence[int], *, roughly: bool = False
) -> list[Blueprint]:
    """The plan of each device, with the layers that are dealt to it."""
    drawn = list[Blueprint]()
    for number, device in enumerate(devices):
        layers = [layer for layer, one in enumerate(dealt) if one == number]
        agreed = _agreed(drawn[:1]) if roughly and drawn else None
        drawn.append(drawing.drawn(device, layers, devices, agreed))
    return drawn


def _agreed(drawn: Sequence[Blueprint]) -> Agreed:
    """The least that any of them has room for."""
    least = min((one.plan.kv_room for one in drawn), key=lambda room: room.tokens)
    return Agreed(least.tokens, least.why, min(one.plan.pass_size.tokens for one in drawn))


def _fit(drawn: Sequence[Blueprint]) -> bool:
    return all(one.plan.memory.fits() for one in drawn)


def _lacking_bytes(plan: ModelPlan) -> int:
    return max(plan.memory.need(place) - have for place, have in plan.memory.available.items())


def _called(number: int, drawn: Sequence[Blueprint], devices: Sequence[Device]) -> str:
    return f"section {number} ({devices[number].torch_device}, {len(drawn[number].plan.kv_layouts)} layers)"


def _room_bytes(drawn: Blueprint, place: str) -> int:
    """What weights may take in a place, beside all else that is held there."""
    if not drawn.settings.residency:
        return 0
    plan, sizes = drawn.plan, drawn.catalog.group_bytes(place)
    stays = sum(sizes[group] for group in plan.residency.stays(place))
    experts = 0 if drawn.experts is None else plan.experts[place] * drawn.experts.slot_bytes[place]
    return max(0, plan.limits[place] - plan.memory.need(place) + stays + experts)


def _slot_bytes(drawn: Blueprint, place: str) -> int:
    return sum(count * size for count, size in drawn.plan.slots[place].values())
