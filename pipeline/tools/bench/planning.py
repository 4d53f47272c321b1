"""`penstock plan`: the plan of a model, the forecast that follows from it, and what more memory or tokens would buy."""

import bisect
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pipeline.checkpoints.config_alone import ConfigAlone
from pipeline.config import Config
from pipeline.devices.port import TWO_PLACES, Device
from pipeline.devices.sim import SimDevice
from pipeline.generation.blueprint import Blueprint, draw_up, draw_up_fitting, say_remarks
from pipeline.models.model_config import ModelConfig, read_config
from pipeline.tools.bench.expert_planning import ExpertOutlook, expert_outlook, whole_forecast
from pipeline.tools.bench.forecast import Forecast, Rates, pass_timings
from pipeline.tools.routing.recorded_routing import RecordedRouting

GIGABYTE = 10**9
MORE_TOKENS = 4
MOST_TOKENS = 1 << 16
ALONE = "one request at a time, max_requests=1, as in penstock run"


@dataclass(frozen=True, slots=True)
class Placed:
    """A plan that tells which groups stay where. Without weights, `computed_from` says from what sizes follow."""

    drawn: Blueprint
    computed_from: str | None

    @property
    def resident_bytes(self) -> dict[str, int]:
        """The bytes that stay, by place."""
        stays, sizes = self.drawn.plan.residency.stays, self.drawn.catalog.group_bytes
        places = [place.name for place in reversed(TWO_PLACES)]
        return {place: sum(sizes(place)[group] for group in stays(place)) for place in places}

    @property
    def read_bytes_per_pass(self) -> int:
        """The bytes that stay nowhere."""
        first = self.drawn.catalog.places[0]
        return self.drawn.plan.residency.moving_bytes(first, self.drawn.catalog.group_bytes(first))

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        plan = self.drawn.plan
        return {
            "memory": {
                place: {"need_bytes": plan.memory.need(place), "have_bytes": have}
                for place, have in plan.memory.available.items()
            },
            "kv_room": dataclasses.asdict(plan.kv_room),
            "state_room": plan.state_room and dataclasses.asdict(plan.state_room),
            "pass_size": dataclasses.asdict(plan.pass_size),
            "resident_bytes": self.resident_bytes,
            "read_bytes_per_pass": self.read_bytes_per_pass,
            "sizes_computed_from": self.computed_from,
        }


@dataclass(frozen=True, slots=True)
class Planned(Placed):
    """A plan with the forecast of a pass, and the forecasts `otherwise`, by what was changed."""

    rates: Rates
    forecast: Forecast
    otherwise: Mapping[str, Forecast]
    experts: ExpertOutlook | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            **Placed.as_dict(self),
            "disk_bytes_per_second": self.rates.disk_bytes_per_second,
            "h2d_bytes_per_second": self.rates.h2d_bytes_per_second,
            **_plain(self.forecast),
            "otherwise": {name: _plain(one) for name, one in self.otherwise.items()},
            **({} if self.experts is None else {"experts": self.experts.as_dict()}),
        }


@contextlib.contextmanager
def sized(
    folder: Path, alone: ConfigAlone | None, settings: Config
) -> Iterator[tuple[ModelConfig, Checkpoint, str | None]]:
    """A model, where its tensors lie, and from what their sizes follow if there are no weights."""
    if alone is not None:
        yield alone.model, alone.checkpoint, alone.source
        return
    model = read_config(folder)
    with open_checkpoint(folder, direct=settings.reading.get("direct", True)) as checkpoint:
        yield model, checkpoint, None


def plan_model(
    folder: Path, settings: Config, device: Device, rates: Rates, tokens: int, routing: RecordedRouting | None = None
) -> Planned:
    """Draw the plan up, forecast it, and again with a GB more of each memory that something could stay in and, for
    passes of one token, without room for other requests; or, if nothing is to stay, with what fits. What passes use of
    experts is known by recorded `routing`, or guessed.

    Raises ConfigError with need, have and knob where the plan does not fit, and as `draw_up` does.
    """
    with sized(folder, None, settings) as (model, checkpoint, _):
        placed = _place(model, checkpoint, settings, device, rates)
        return _forecast(placed, settings, device, rates, tokens, routing)


def plan_alone(
    alone: ConfigAlone,
    settings: Config,
    device: Device,
    rates: Rates | None,
    tokens: int,
    routing: RecordedRouting | None = None,
) -> Placed:
    """Plan a model without weights; without `rates` there is no forecast."""
    placed = _place(alone.model, alone.checkpoint, settings, device, rates, alone.source)
    return placed if rates is None else _forecast(placed, settings, device, rates, tokens, routing)


def _place(
    model: ModelConfig,
    checkpoint: Checkpoint,
    settings: Config,
    device: Device,
    rates: Rates | None,
    computed_from: str | None = None,
) -> Placed:
    drawn = draw_up_fitting(model, checkpoint, settings, device)
    if rates is not None:
        drawn = drawn.at_rates(rates.of_passes)
    say_remarks(drawn, settings, device)
    return Placed(drawn, computed_from)


def _forecast(
    placed: Placed, settings: Config, device: Device, rates: Rates, tokens: int, routing: RecordedRouting | None
) -> Planned:
    drawn = placed.drawn
    model, checkpoint = drawn.model, drawn.checkpoint

    def of(drawn: Blueprint, tokens: int = tokens) -> Forecast:
        return whole_forecast(drawn, settings, rates, tokens, routing)

    now = of(drawn)
    otherwise = {}
    if not settings.residency:
        staying = draw_up(model, checkpoint, replace(settings, residency=True), device).at_rates(rates.of_passes)
        otherwise["what fits stays"] = of(staying)
    elif _something_moves(drawn, device):
        plan = drawn.plan  # KV blocks and passes as they are, so that the weights get all of it
        same_room = replace(settings, kv_tokens=plan.kv_room.tokens, max_tokens_per_pass=plan.pass_size.tokens)
        if (states := plan.state_room) is not None:
            same_room = replace(same_room, max_requests=states.requests, state_snapshots=states.snapshots)
        for place in drawn.plan.slots:
            limits = {**drawn.plan.limits, place: drawn.plan.limits[place] + GIGABYTE}
            memory: dict[str, Any] = {one.memory_setting: limits[one.name] for one in device.places}
            more = draw_up(model, checkpoint, replace(same_room, **memory), SimDevice.like(device, limits))
            otherwise[f"1 GB more of {place} memory"] = of(more)
        if tokens == 1 and settings.max_requests > 1:
            alone = draw_up(model, checkpoint, replace(settings, max_requests=1), device).at_rates(rates.of_passes)
            one = of(alone)
            if one.pass_seconds < now.pass_seconds:
                otherwise[ALONE] = one
    many = MORE_TOKENS * tokens
    otherwise[f"{many} tokens per pass"] = of(drawn, many)
    if drawn.experts is not None and rates.products is not None and not settings.batch_invariant:
        other = replace(settings, cpu_experts=False if settings.cpu_experts else "auto")
        otherwise[f"with cpu_experts={other.cpu_experts}"] = whole_forecast(drawn, other, rates, tokens, routing)
    outlook = expert_outlook(drawn, settings, rates, tokens, routing)
    return Planned(drawn, placed.computed_from, rates, now, otherwise, outlook)


def _something_moves(drawn: Blueprint, device: Device) -> bool:
    """Whether more memory could hold what moves now."""
    last, experts = device.places[-1].name, drawn.experts
    moving = len(drawn.catalog.order) - len(drawn.plan.residency.stays(last))
    return moving > 0 or (experts is not None and drawn.plan.experts[last] < experts.count)


def balanced_tokens(planned: Planned) -> int | None:
    """Return how many tokens a pass computes while it moves its bytes.

    None where computing binds anyway, and where a token more moves more, as its experts do.
    """
    if planned.experts is not None:
        return None
    moving = max(seconds for name, seconds in planned.forecast.resource_seconds.items() if name != "compute")

    def moves_longer(tokens: int) -> bool:
        timings = pass_timings(planned.drawn.catalog, planned.drawn.plan, planned.rates, tokens)
        return timings.resources["compute"] < moving

    if not moves_longer(planned.forecast.tokens):
        return None
    return bisect.bisect_left(range(MOST_TOKENS), True, key=lambda tokens: not moves_longer(tokens))


def _plain(one: Forecast) -> dict[str, Any]:
    return {
        "tokens_per_pass": one.tokens,
        "pass_seconds": one.pass_seconds,
        "tokens_per_second": one.tokens_per_second,
        "binds": one.binds,
        "resource_seconds": dict(one.resource_seconds),
    }
