"""The memory plan of a model: KV blocks, activations and logits beside the weights, before any memory is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.plan import Plan, Planning
from pipeline.errors import ConfigError
from pipeline.generation.pass_holdings import pass_holdings
from pipeline.generation.pass_size import LEAST_SECONDS, PassSize, choose_size, request_seconds, sizes
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroups
from pipeline.models.model_config import ModelConfig
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.state.kv_holdings import kv_holdings, place_layers
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.kv_room import Demand, KvRoom, PassBytes, choose_room
from pipeline.system.host_memory import free_disk_bytes
from pipeline.system.memory_plan import Holding

DEFAULT_CONTEXT_TOKENS = 4096
DISK_RATE = 4e9
"""The bytes per second of a disk of today, from which the expected time of a pass follows."""


@dataclass(frozen=True, slots=True)
class ModelPlan(Plan):
    """The plan of a line that computes a model, and what it gives to KV blocks."""

    context_tokens: int
    kv_layout: KvLayout
    kv: KvPlacement
    kv_room: KvRoom
    pass_size: PassSize


def make_plan(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    catalog: WeightCatalog,
    device: Device,
    dtype: torch.dtype,
) -> ModelPlan:
    """Add everything up. KV blocks get what is left: the device first, then host memory, then the disk.

    What they leave holds weight groups for good. Where `kv_tokens` does not say how many there are, they get what makes
    most tokens per second; a pass carries as many as make a request cost the least, unless `max_tokens_per_pass` says
    how many. The plan may not fit: `Plan.memory.fits` tells. Raises ConfigError for settings that
    contradict each other.
    """
    context_tokens = _context_tokens(model, settings)
    wanted = _wanted_tokens(settings, context_tokens)
    disk = {} if settings.kv_disk is None else {"disk": free_disk_bytes(settings.kv_disk)}
    planning = Planning.of(settings, catalog, device, (), disk)

    def rooms(tokens: int) -> _Rooms:
        held = pass_holdings(model, settings, groups, device, dtype, context_tokens, tokens)
        return _Rooms(model, settings, dtype, context_tokens, planning, tokens, held)

    if settings.max_tokens_per_pass is not None:
        return rooms(settings.max_tokens_per_pass).best(wanted)
    plans: dict[int, ModelPlan] = {}
    costs: dict[int, float] = {}
    for tokens in sizes(context_tokens, settings.max_requests):
        room = rooms(tokens)
        plan = room.best(wanted)
        if plans and not room.fits(plan):
            break
        plans[tokens], costs[tokens] = plan, room.request_seconds(plan)
    return plans[choose_size(costs)]


@dataclass(frozen=True, slots=True)
class _Rooms:
    """Plans that differ in the room for KV blocks; passes of so many `tokens` hold what is in `held`."""

    model: ModelConfig
    settings: Config
    dtype: torch.dtype
    context_tokens: int
    planning: Planning
    tokens: int
    held: Sequence[Holding]

    def best(self, wanted: int | None) -> ModelPlan:
        """With room for so many tokens as are wanted, else for what makes most tokens per second."""
        if wanted is None:
            plan = self.planned_by_worth()
        else:
            plan = self.planned(wanted, "as kv_tokens says", self.planning.available, "kv_tokens")
        return replace(plan, pass_size=PassSize(self.tokens, self._max_seconds(plan)))

    def fits(self, plan: ModelPlan) -> bool:
        """Whether it leaves free what plans leave free."""
        return all(plan.memory.need(place) <= limit for place, limit in self.planning.limits.items())

    def request_seconds(self, plan: ModelPlan) -> float:
        """What a request costs, in seconds of a disk with one byte per second."""
        place, moved = self.planning.device.places[-1], self._pass_bytes(plan)

        def pass_seconds(tokens: int) -> float:
            return moved.seconds(self._weights, place.disk_speeds / (1 + tokens / place.balanced_tokens))

        sharing = max(1, self._demand.share(plan.kv_room.tokens))
        return request_seconds(self.tokens, self.context_tokens, sharing, pass_seconds)

    def planned(self, tokens: int, why: str, within: Mapping[str, int], knob: str) -> ModelPlan:
        """With room for so many tokens, which `knob` changes, `within` that much memory."""
        layout, device = KvLayout.of(self.model, blocks_for(tokens), self.dtype), self.planning.device
        free = self.planning.room(within, self.held)
        on_disk = self.settings.kv_disk is not None
        kv = place_layers(self.model.layers, layout.layer_bytes, device, free, on_disk=on_disk)
        plan = self.planning.plan([*self.held, *kv_holdings(layout, kv, knob, device, on_disk=on_disk)])
        kv_room = KvRoom(layout.blocks * BLOCK_TOKENS, layout.layer_bytes * self.model.layers, why)
        said = (plan.memory, plan.limits, plan.slots, plan.residency)
        return ModelPlan(*said, self.context_tokens, layout, kv, kv_room, PassSize(self.tokens, None))

    def planned_by_worth(self) -> ModelPlan:
        """With room for what makes most tokens per second, and for one request of a whole context in any case."""
        available, limits, demand = self.planning.available, self.planning.limits, self._demand

        def planned(tokens: int, why: str = "") -> ModelPlan:
            least = tokens == demand.longest
            within, knob = (available, "context_tokens") if least else (limits, "kv_tokens")
            return self.planned(tokens, why, within, knob)

        usual = planned(demand.usual).memory
        roomy = {  # other models of this process want memory too: where no setting limits it, half of the rest is left
            place: limit if limit == available[place] else (usual.need(place) + limit) // 2
            for place, limit in limits.items()
        }

        def moves(tokens: int) -> PassBytes | None:
            plan, most = planned(tokens), limits if tokens <= demand.usual else roomy
            fits = all(plan.memory.need(place) <= limit for place, limit in most.items())
            return self._pass_bytes(plan) if fits else None

        return planned(*choose_room(demand, self._weights, self.planning.device.places[-1].disk_speeds, moves))

    @property
    def _demand(self) -> Demand:
        return Demand.of(self.context_tokens, self.settings.max_requests, self.tokens)

    @property
    def _weights(self) -> int:
        """The bytes of all."""
        return sum(self.planning.catalog.group_bytes(self.planning.device.places[-1].name).values())

    def _max_seconds(self, plan: ModelPlan) -> float | None:
        """By how much prompts may delay others: as long as the bytes of a pass move, by their number."""
        settings = self.settings
        if settings.max_pass_seconds is not None or settings.max_tokens_per_pass is not None:
            return settings.max_pass_seconds
        return max(LEAST_SECONDS, float(f"{self._pass_bytes(plan).seconds(0, 1) / DISK_RATE:.2g}"))

    def _pass_bytes(self, plan: ModelPlan) -> PassBytes:
        catalog, layer_bytes = self.planning.catalog, plan.kv_layout.layer_bytes
        moving = [plan.residency.moving_bytes(place, catalog.group_bytes(place)) for place in plan.slots]
        read = moving[0] + len(plan.kv.disk) * layer_bytes
        return PassBytes(read, sum(nbytes + len(plan.kv.moving) * layer_bytes for nbytes in moving[1:]))


def _context_tokens(model: ModelConfig, settings: Config) -> int:
    if settings.context_tokens is None:
        return min(model.max_positions, DEFAULT_CONTEXT_TOKENS)
    if settings.context_tokens > model.max_positions:
        raise ConfigError(
            f"context_tokens: the model was made for {model.max_positions} positions, have {settings.context_tokens}"
        )
    return settings.context_tokens


def _wanted_tokens(settings: Config, context_tokens: int) -> int | None:
    """What the setting says, if it does."""
    if settings.kv_tokens is not None and settings.kv_tokens < context_tokens:
        raise ConfigError(
            f"kv_tokens: need at least the {context_tokens} of context_tokens, so that any request can be held alone, "
            f"have {settings.kv_tokens}"
        )
    return settings.kv_tokens
