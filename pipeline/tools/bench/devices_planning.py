"""What several devices of one machine take for a model, beside what the first of them would take alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.generation.blueprint import Blueprint, draw_up, say_remarks
from pipeline.generation.drawn_sections import HOP_SECONDS, dealt_at_rates, draw_up_sections, owners
from pipeline.models.model_config import ModelConfig
from pipeline.tools.bench.forecast import Rates
from pipeline.tools.bench.sections_forecast import SectionsForecast, sections_forecast
from pipeline.tools.routing.recorded_routing import RecordedRouting


@dataclass(frozen=True, slots=True)
class PlannedSection:
    """The plan of one device: its layers, and what of their weights stays in each place, is read and is sent."""

    device: str
    drawn: Blueprint

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of its layers."""
        return tuple(self.drawn.plan.kv_layouts)

    @property
    def has_head(self) -> bool:
        """Whether the head is one of its own."""
        return self.drawn.model.layers in self.drawn.part.layers

    def stay_bytes(self, place: str) -> int:
        """What stays in a place."""
        sizes = self.drawn.catalog.group_bytes(place)
        return sum(sizes[group] for group in self.drawn.plan.residency.stays(place))

    def moving_bytes(self, place: str) -> int:
        """What comes into a place in every pass, but for experts."""
        return self.drawn.plan.residency.moving_bytes(place, self.drawn.catalog.group_bytes(place))

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        memory, places = self.drawn.plan.memory, [*self.drawn.plan.slots]
        return {
            "device": self.device,
            "layers": list(self.layers),
            "has_head": self.has_head,
            "memory": {
                place: {"need_bytes": memory.need(place), "have_bytes": memory.available[place]} for place in places
            },
            "resident_bytes": {place: self.stay_bytes(place) for place in places},
            "moving_bytes_per_pass": {place: self.moving_bytes(place) for place in places},
        }


@dataclass(frozen=True, slots=True)
class PlannedDevices:
    """Their sections, and without rates no forecast: of all, and of the first `alone`, if the model fits there."""

    sections: Sequence[PlannedSection]
    dealt: Sequence[int]
    rates: Rates | None
    forecast: SectionsForecast | None
    alone: SectionsForecast | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        plan = self.sections[0].drawn.plan
        return {
            "sections": [one.as_dict() for one in self.sections],
            "kv_tokens": plan.kv_room.tokens,
            "max_tokens_per_pass": plan.pass_size.tokens,
            **({} if self.forecast is None else self.forecast.as_dict()),
            **({} if self.alone is None else {"one_device": self.alone.as_dict()}),
        }


def plan_devices(
    model: ModelConfig,
    checkpoint: Checkpoint,
    settings: Config,
    devices: Sequence[Device],
    names: Sequence[str],
    rates: Rates | None,
    tokens: int,
    routing: RecordedRouting | None,
) -> PlannedDevices:
    """Draw the plans up, and forecast passes of so many tokens at rates that each device has.

    Raises ConfigError with need, have and knob, device by device, where a plan does not fit.
    """
    drawn = draw_up_sections(model, checkpoint, settings, devices)
    if rates is not None:
        drawn = dealt_at_rates(drawn, devices, rates.of_passes)
    say_remarks(drawn[0], settings, devices[0])
    dealt = owners(drawn)
    sections = [PlannedSection(name, one) for name, one in zip(names, drawn, strict=True)]
    if rates is None:
        return PlannedDevices(sections, dealt, None, None, None)
    forecast = sections_forecast(drawn, dealt, rates, tokens, HOP_SECONDS, routing)
    one = draw_up(model, checkpoint, settings.of_device(settings.device), devices[0]).at_rates(rates.of_passes)
    fits = one.plan.memory.fits()
    alone = sections_forecast([one], [0] * len(dealt), rates, tokens, 0.0, routing) if fits else None
    return PlannedDevices(sections, dealt, rates, forecast, alone)
