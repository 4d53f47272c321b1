"""Forecasts of passes whose experts move: by recorded routing of the model, or of another one, or by a guess."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints.checkpoint_digest import checkpoint_digest
from pipeline.config import Config
from pipeline.engine.expert_room import ExpertRoom
from pipeline.generation.blueprint import Blueprint
from pipeline.generation.expert_split import split_rates
from pipeline.tools.bench.expert_forecast import ExpertSizes, LeftToCpu, with_experts
from pipeline.tools.bench.forecast import Forecast, Rates, forecast
from pipeline.tools.routing.expert_demand import ExpertDemand, flat_demand, recorded_demand, scaled_demand
from pipeline.tools.routing.hit_curves import SHARES
from pipeline.tools.routing.recorded_routing import RecordedRouting, RoutedModel
from pipeline.tools.routing.replay_routing import REPLAYED, Make


@dataclass(frozen=True, slots=True)
class ExpertOutlook:
    """What passes use and miss of experts that have so many `slots`, by place, and what more or fewer would bring.

    `by_bytes` has the forecasts by how much memory the experts have in the first place, the others being as they are.
    """

    model: RoutedModel
    slots: Mapping[str, int]
    demand: ExpertDemand
    by_bytes: Mapping[int, Forecast]

    @property
    def read_bytes(self) -> float:
        """Read for a pass."""
        return float(self.demand.missed[0].sum(axis=1).mean()) * self.model.expert_bytes

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "slots": dict(self.slots),
            "hit_rate": self.demand.hit_rate,
            "read_bytes_per_pass": self.read_bytes,
            "known": self.demand.how,
            "pass_seconds_by_bytes": {nbytes: one.pass_seconds for nbytes, one in self.by_bytes.items()},
        }


def whole_forecast(
    drawn: Blueprint, settings: Config, rates: Rates, tokens: int, routing: RecordedRouting | None
) -> Forecast:
    """The forecast of a pass, with its experts."""
    dense = forecast(drawn.catalog, drawn.plan, settings, rates, tokens)
    if drawn.experts is None:
        return dense
    demand = _demand(drawn, drawn.experts, drawn.plan.experts, settings, tokens, routing)
    return with_experts(dense, rates, demand, _sizes(drawn, drawn.experts), _left(drawn.experts, settings, rates))


def expert_outlook(
    drawn: Blueprint, settings: Config, rates: Rates, tokens: int, routing: RecordedRouting | None
) -> ExpertOutlook | None:
    """None for a model without experts."""
    if (room := drawn.experts) is None:
        return None
    dense, slots = forecast(drawn.catalog, drawn.plan, settings, rates, tokens), drawn.plan.experts
    first, by_bytes = next(iter(slots)), {}
    for share in SHARES:
        changed = {**slots, first: max(2, round(share * room.count))}
        demand, left = _demand(drawn, room, changed, settings, tokens, routing), _left(room, settings, rates)
        nbytes = changed[first] * room.slot_bytes[first]
        by_bytes[nbytes] = with_experts(dense, rates, demand, _sizes(drawn, room), left)
    demand = _demand(drawn, room, slots, settings, tokens, routing)
    return ExpertOutlook(_routed(drawn, room), slots, demand, by_bytes)


def _demand(
    drawn: Blueprint,
    room: ExpertRoom,
    slots: Mapping[str, int],
    settings: Config,
    tokens: int,
    routing: RecordedRouting | None,
) -> ExpertDemand:
    chosen, counts = settings.expert_cache, [*slots.values()]
    make: Make = REPLAYED[chosen] if isinstance(chosen, str) else lambda *_: chosen()
    model = _routed(drawn, room)
    if routing is None:
        return flat_demand(model, counts, tokens, make)
    if drawn.checkpoint.files and checkpoint_digest(drawn.checkpoint) == routing.model.digest:
        return recorded_demand(routing, counts, tokens, make)
    return scaled_demand(routing, model, counts, tokens, make)


def _routed(drawn: Blueprint, room: ExpertRoom) -> RoutedModel:
    layers = tuple(sorted({layer for layer, _ in room.catalog.order}))
    chosen = drawn.part.chosen_experts // len(layers)
    nbytes = room.catalog.needed_bytes // room.count
    return RoutedModel(drawn.model.family, "", layers, room.count // len(layers), chosen, nbytes)


def _sizes(drawn: Blueprint, room: ExpertRoom) -> ExpertSizes:
    parameters = sum(room.catalog.parameters().values())
    return ExpertSizes(room.catalog.needed_bytes / room.count, parameters / room.count, _routed(drawn, room).chosen)


def _left(room: ExpertRoom, settings: Config, rates: Rates) -> LeftToCpu | None:
    """What the settings leave to the CPU, where it is known what that takes."""
    if not settings.cpu_experts or rates.products is None:
        return None
    return LeftToCpu(split_rates(room, rates.of_passes, rates.products), settings.cpu_experts is True)
