"""The memory plan of a model: KV blocks, activations and logits beside the weights, before any memory is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.expert_room import ExpertRoom
from pipeline.engine.plan import Plan, Planning
from pipeline.errors import ConfigError
from pipeline.generation.pass_holdings import pass_holdings
from pipeline.generation.pass_rates import PassRates
from pipeline.generation.pass_size import LEAST_SECONDS, PassSize, choose_size, request_seconds, sizes
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroups
from pipeline.models.delta_state import StateParts
from pipeline.models.layers import Attention, DeltaNet
from pipeline.models.model_config import ModelConfig
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.state.cell_layout import CellLayout
from pipeline.state.kv_holdings import kv_holdings, place_layers
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.kv_room import Demand, KvRoom, PassBytes, choose_room
from pipeline.state.state_layout import StateLayout, StateRoom
from pipeline.system.host_memory import free_disk_bytes
from pipeline.system.memory_plan import Holding

DEFAULT_CONTEXT_TOKENS = 4096
FEWEST_SNAPSHOTS = 2
"""Of a prompt, and of the answer to it: what a conversation goes on from."""
SNAPSHOT_REQUESTS = 8
"""The plan has a snapshot for so many requests: one takes as much memory as a request that runs."""


@dataclass(frozen=True, slots=True)
class ModelPlan(Plan):
    """The plan of a line that computes a model, what it gives to KV blocks, and whether the embedding table stays."""

    context_tokens: int
    kv_layouts: Mapping[int, CellLayout]
    kv: KvPlacement
    kv_room: KvRoom
    state_room: StateRoom | None
    pass_size: PassSize
    embedding_stays: bool


@dataclass(frozen=True, slots=True)
class SizedPlans:
    """Plans of which each has passes of another size, with how they were made. Rates choose one, and fit its passes."""

    _each: Sequence[tuple["_Rooms", ModelPlan]]

    @property
    def moved(self) -> PassBytes:
        """The most that a pass reads, and sends, of any of them."""
        each = [room.pass_bytes(plan) for room, plan in self._each]
        return PassBytes(max(one.read for one in each), max(one.sent for one in each))

    def best(self, rates: PassRates) -> ModelPlan:
        """The one with which a request costs the least at these rates, with as many slots as they ask for."""
        sized = {room.tokens: (room, plan) for room, plan in self._each}
        costs = {tokens: room.request_seconds(plan, rates) for tokens, (room, plan) in sized.items()}
        room, plan = sized[choose_size(costs)]
        room, plan = room.for_link(plan, rates)
        return replace(plan, pass_size=room.pass_size(plan, rates))


def make_plans(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    catalog: WeightCatalog,
    device: Device,
    dtype: torch.dtype,
    tokenizer_bytes: int,
    experts: ExpertRoom | None = None,
) -> SizedPlans:
    """Add everything up. KV blocks get what is left: the device first, then host memory, then the disk.

    What they leave holds weight groups for good. Where `kv_tokens` does not say how many there are, they get what makes
    most tokens per second. There is a plan for each size of a pass that could be best, or for that of
    `max_tokens_per_pass`. It may not fit: `Plan.memory.fits` tells. Raises ConfigError for settings that contradict
    each other.
    """
    context_tokens = _context_tokens(model, settings)
    wanted = _wanted_tokens(settings, context_tokens)
    disk = {} if settings.kv_disk is None else {"disk": free_disk_bytes(settings.kv_disk)}
    tokenizer = Holding("tokenizer", device.places[0].name, tokenizer_bytes, "")
    planning = Planning.of(settings, catalog, device, (tokenizer,) * bool(tokenizer_bytes), disk, experts)
    table_bytes = sum(tensor.length for tensor in groups.embed.tensors)
    table = Holding("embedding table", device.places[0].name, table_bytes, "residency")

    def rooms(tokens: int) -> _Rooms:
        held = pass_holdings(model, settings, groups, device, dtype, context_tokens, tokens)
        return _Rooms(model, settings, dtype, context_tokens, planning, tokens, held, table)

    if settings.max_tokens_per_pass is not None:
        room = rooms(settings.max_tokens_per_pass)
        return SizedPlans([(room, room.best(wanted))])
    plans: list[tuple[_Rooms, ModelPlan]] = []
    for tokens in sizes(context_tokens, settings.max_requests):
        room = rooms(tokens)
        plan = room.best(wanted)
        if plans and not room.fits(plan):
            break
        plans.append((room, plan))
    return SizedPlans(plans)


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
    table: Holding

    def best(self, wanted: int | None) -> ModelPlan:
        """With room for so many tokens as are wanted, else for what makes most tokens per second."""
        if wanted is None:
            return self.planned_by_worth()
        return self.planned(wanted, "as kv_tokens says", self.planning.available, "kv_tokens")

    def for_link(self, plan: ModelPlan, rates: PassRates) -> tuple["_Rooms", ModelPlan]:
        """With the slots that the link needs, where passes wait for it; as before, where they would displace KV.

        A disk is slower than a link: while passes read, they wait for that.
        """
        if rates.link is None or not self.pass_bytes(plan).sent:
            return self, plan
        rooms = replace(self, planning=self.planning.for_link(rates.link))
        other = rooms.best(_wanted_tokens(self.settings, self.context_tokens))
        unfit = rooms.pass_bytes(other).read or len(other.kv.moving) > len(plan.kv.moving) or not rooms.fits(other)
        return (self, plan) if unfit else (rooms, other)

    def fits(self, plan: ModelPlan) -> bool:
        """Whether it leaves free what plans leave free."""
        return all(plan.memory.need(place) <= limit for place, limit in self.planning.limits.items())

    def request_seconds(self, plan: ModelPlan, rates: PassRates) -> float:
        """What a request costs."""
        place, moved = self.planning.device.places[-1], self.pass_bytes(plan)

        def pass_seconds(tokens: int) -> float:
            return rates.seconds(moved, place, self._computed_bytes * (1 + tokens / place.balanced_tokens))

        sharing = max(1, self._demand.share(plan.kv_room.tokens))
        return request_seconds(self.tokens, self.context_tokens, sharing, pass_seconds)

    def planned(self, tokens: int, why: str, within: Mapping[str, int], knob: str) -> ModelPlan:
        """With room for so many tokens, which `knob` changes, `within` that much memory."""
        device, layouts = self.planning.device, self._layouts(tokens)
        free = self.planning.room(within, self.held)
        on_disk = self.settings.kv_disk is not None
        kv = place_layers(layouts, device, free, on_disk=on_disk)
        held = [*self.held, *kv_holdings(layouts, kv, knob, device, on_disk=on_disk)]
        plan = self.planning.plan(held)
        if table_stays := self._table_stays(plan):
            plan = self.planning.plan([*held, self.table])
        kv_bytes = sum(layout.layer_bytes for layout in layouts.values() if isinstance(layout, KvLayout))
        rooms = KvRoom(blocks_for(tokens) * BLOCK_TOKENS, kv_bytes, why), StateRoom.of(layouts.values())
        said = (plan.memory, plan.limits, plan.slots, plan.residency, plan.groups, plan.experts, self.context_tokens)
        return ModelPlan(*said, layouts, kv, *rooms, PassSize(self.tokens, None), table_stays)

    def _layouts(self, tokens: int) -> dict[int, CellLayout]:
        """Those of all layers, with room for so many tokens; recurrent ones have it for as many requests.

        Where a setting says how many tokens these are, recurrent states have room for all that may run.
        """
        settings, mixers = self.settings, [layer.mixer for layer in self.model.layer_kinds]
        requests = self._demand.running(tokens) if settings.kv_tokens is None else settings.max_requests
        snapshots = settings.state_snapshots
        snapshots = max(FEWEST_SNAPSHOTS, requests // SNAPSHOT_REQUESTS) if snapshots is None else snapshots
        carries = self.planning.device.torch_device.type != "cuda"

        def layout(kind: Attention | DeltaNet) -> CellLayout:
            if isinstance(kind, Attention):
                return KvLayout.of(kind, blocks_for(tokens), self.dtype)
            return StateLayout(requests, snapshots, StateParts.of(kind, self.dtype, carries=carries))

        made = {kind: layout(kind) for kind in {*mixers}}
        return {layer: made[kind] for layer, kind in enumerate(mixers)}

    def _table_stays(self, plan: Plan) -> bool:
        """Whether the embedding table stays in the room that all else leaves.

        Only where computing is so fast that fetching rows counts, and where no weights are read from the disk either.
        """
        place, catalog = self.table.place, self.planning.catalog
        reads = plan.residency.moving_bytes(place, catalog.group_bytes(place))
        left = plan.limits[place] - plan.memory.need(place)
        return len(self.planning.device.places) > 1 and not reads and self.table.nbytes <= left

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
            return self.pass_bytes(plan) if fits else None

        return planned(*choose_room(demand, self._computed_bytes, self.planning.device.places[-1].disk_speeds, moves))

    @property
    def _demand(self) -> Demand:
        return Demand.of(self.context_tokens, self.settings.max_requests, self.tokens)

    @property
    def _computed_bytes(self) -> int:
        """Those of all weights as they are computed with: what is stored in fewer is decoded for every pass."""
        parameters, experts = sum(self.planning.catalog.parameters().values()), self.planning.experts
        if experts is not None:
            parameters += sum(experts.catalog.parameters().values()) * self.model.chosen_experts // experts.count
        return parameters * self.dtype.itemsize

    def pass_size(self, plan: ModelPlan, rates: PassRates) -> PassSize:
        """Prompts may delay others for as long as the bytes of a pass move, where no setting says otherwise."""
        settings, place, moved = self.settings, self.planning.device.places[-1], self.pass_bytes(plan)
        if settings.max_tokens_per_pass is not None:
            return PassSize(self.tokens, settings.max_pass_seconds)
        usual = max(LEAST_SECONDS, float(f"{rates.seconds(moved, place, 0):.2g}"))
        return PassSize(self.tokens, settings.max_pass_seconds or usual, rates.told(moved, place))

    def pass_bytes(self, plan: ModelPlan) -> PassBytes:
        """What a pass moves."""
        catalog, kv = self.planning.catalog, plan.kv
        moving = [plan.residency.moving_bytes(place, catalog.group_bytes(place)) for place in plan.slots]
        read, sent = (sum(plan.kv_layouts[one].pass_bytes for one in layers) for layers in (kv.disk, kv.moving))
        if (experts := self.planning.experts) is not None:
            missed = experts.missed_bytes(plan.experts, self.model.chosen_experts)
            moving = [nbytes + missed[place] for place, nbytes in zip(plan.slots, moving, strict=True)]
        return PassBytes(moving[0] + read, sum(nbytes + sent for nbytes in moving[1:]))


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
