"""Forecasts a pass that goes through several sections, by the closed form with which their layers are dealt. Pure."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.engine.dealing import Share, hops, pass_seconds
from pipeline.formats.parts import kind_of
from pipeline.generation.blueprint import Blueprint
from pipeline.groups.groups import WeightGroups
from pipeline.tools.bench.expert_planning import whole_forecast
from pipeline.tools.bench.forecast import PassForecast, Rates
from pipeline.tools.routing.recorded_routing import RecordedRouting


@dataclass(frozen=True, slots=True)
class SectionsForecast(PassForecast):
    """That of several sections. Of disks and links the seconds are those of the busiest section; of computing, waits
    for experts and hops those of all sections, which a pass goes through one after the other.
    """

    hops: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "tokens_per_pass": self.tokens,
            "pass_seconds": self.pass_seconds,
            "tokens_per_second": self.tokens_per_second,
            "binds": self.binds,
            "resource_seconds": dict(self.resource_seconds),
            "hops": self.hops,
        }


def sections_forecast(
    drawn: Sequence[Blueprint],
    dealt: Sequence[int],
    rates: Rates,
    tokens: int,
    hop_seconds: float,
    routing: RecordedRouting | None = None,
) -> SectionsForecast:
    """Layers are `dealt` to sections with these plans, of which one may stand for several that are alike.

    Those of one process share its disk. KV blocks that move are left out.
    """
    disk = replace(rates, disk_bytes_per_second=rates.disk_bytes_per_second / drawn[0].part.sections)
    alike = {id(one): one for one in drawn}
    found = {key: whole_forecast(one, one.settings, disk, tokens, routing) for key, one in alike.items()}
    each = [found[id(one)] for one in drawn]
    whole = drawn[0].whole
    resources = {
        name: max(one.resource_seconds[name] for one in each) for name in each[0].resource_seconds if name != "compute"
    }
    links = max(resources.values())
    resources["compute"] = _compute_seconds(whole, rates, tokens)
    if whole.experts:
        stand_for = len(whole.experts) / sum(len(one.groups.experts) for one in drawn)
        of_all_else = sum(_compute_seconds(one.groups, rates, tokens) for one in drawn)
        computing = sum(one.resource_seconds["compute"] for one in each)
        resources["compute"] += max(0.0, computing - of_all_else) * stand_for
        alone = sum(one.alone_seconds - rates.begin_seconds for one in each)
        resources["experts"] = max(0.0, alone - computing) * stand_for
    way = rates.begin_seconds + resources["compute"] + resources.get("experts", 0.0)
    if changes := hops(dealt):
        resources["hops"] = changes * hop_seconds
    shares = [_share(one, disk) for one in drawn]
    seconds = max(links, pass_seconds(_layer_bytes(whole), dealt, shares, hop_seconds, way))
    return SectionsForecast(tokens, seconds, resources, changes)


def how_dealt(dealt: Sequence[int]) -> str:
    """How layers are dealt, in words."""
    longest = max(len([*run]) for _, run in itertools.groupby(dealt[:-1]))
    if hops(dealt) <= len({*dealt}):
        return "layers that follow one another in each"
    return f"layers in turn, {'one' if longest == 1 else f'up to {longest}'} at a time"


def _share(drawn: Blueprint, rates: Rates) -> Share:
    """What a section's plan leaves to move of all but its experts, over what takes longer for it."""
    plan, sizes = drawn.plan, drawn.catalog.group_bytes
    moving = {place: plan.residency.moving_bytes(place, sizes(place)) for place in plan.slots}
    slots = {place: sum(count * size for count, size in kinds.values()) for place, kinds in plan.slots.items()}
    first, last = next(iter(moving)), [*moving][-1]
    whole, h2d = sum(_layer_bytes(drawn.groups)), rates.h2d_bytes_per_second
    if h2d is not None and moving[last] / h2d > moving[first] / rates.disk_bytes_per_second:
        return Share(whole - moving[last], h2d, slots[last])
    return Share(whole - moving[first], rates.disk_bytes_per_second, sum(slots.values()))


def _compute_seconds(groups: WeightGroups, rates: Rates, tokens: int) -> float:
    """What computing all groups takes, but for experts."""
    computes = rates.computes
    return sum(computes[kind_of(one.name)].seconds(one.needed_bytes, one.parameters, tokens) for one in groups.groups)


def _layer_bytes(groups: WeightGroups) -> list[int]:
    """The bytes of each layer but its experts, which move when they are needed; the last are those of the head."""
    found = Counter[int]()
    for group in groups.groups:
        found[group.layer] += group.needed_bytes
    return [found[layer] for layer in range(1 + groups.groups[-1].layer)]
