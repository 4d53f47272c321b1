"""The memory plan of a model: KV blocks, activations and logits beside the weights, before any memory is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.config import Config
from pipeline.engine.plan import Plan, Planning
from pipeline.generation.part import Agreed, Part
from pipeline.generation.pass_rates import PassRates
from pipeline.generation.pass_size import LEAST_SECONDS, PassSize, request_seconds
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
from pipeline.system.memory_plan import Holding

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
class Rooms:
    """Plans that differ in the room for KV blocks; passes of so many `tokens` hold what is in `held`."""

    model: ModelConfig
    settings: Config
    dtype: torch.dtype
    part: Part
    context_tokens: int
    planning: Planning
    tokens: int
    held: Sequence[Holding]
    table: Holding

    def best(self, agreed: Agreed | None = None) -> ModelPlan:
        """With room for so many tokens as a setting says or were agreed on, else for what makes most per second."""
        if self.settings.kv_tokens is not None:
            return self.planned(self.settings.kv_tokens, "as kv_tokens says", self.planning.available, "kv_tokens")
        return self.planned_by_worth() if agreed is None else self._usual(agreed.kv_tokens, agreed.why)

    def for_link(self, plan: ModelPlan, rates: PassRates, agreed: Agreed | None) -> tuple["Rooms", ModelPlan]:
        """With the slots that the link needs, where passes wait for it; as before, where they would displace KV.

        A disk is slower than a link: while passes read, they wait for that.
        """
        if rates.link is None or not self.pass_bytes(plan).sent:
            return self, plan
        rooms = replace(self, planning=self.planning.for_link(rates.link))
        other = rooms.best(agreed)
        unfit = rooms.pass_bytes(other).read or len(other.kv.moving) > len(plan.kv.moving) or not rooms.fits(other)
        return (self, plan) if unfit else (rooms, other)

    def fits(self, plan: ModelPlan) -> bool:
        """Whether it leaves free what plans leave free."""
        return all(plan.memory.need(place) <= limit for place, limit in self.planning.limits.items())

    def request_seconds(self, plan: ModelPlan, rates: PassRates) -> float:
        """What a request costs."""
        place, moved = self.planning.device.places[-1], self.pass_bytes(plan)

        def pass_seconds(tokens: int) -> float:
            return rates.seconds(moved, place, self.part.computed_bytes * (1 + tokens / place.balanced_tokens))

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
        """Those of its layers, with room for so many tokens; recurrent ones have it for as many requests.

        Where a setting says how many tokens these are, recurrent states have room for all that may run.
        """
        settings = self.settings
        mixers = {layer: one.mixer for layer, one in enumerate(self.model.layer_kinds) if layer in self.part.layers}
        requests = self._demand.running(tokens) if settings.kv_tokens is None else settings.max_requests
        snapshots = settings.state_snapshots
        snapshots = max(FEWEST_SNAPSHOTS, requests // SNAPSHOT_REQUESTS) if snapshots is None else snapshots
        carries = self.planning.device.torch_device.type != "cuda"

        def layout(kind: Attention | DeltaNet) -> CellLayout:
            if isinstance(kind, Attention):
                return KvLayout.of(kind, blocks_for(tokens), self.dtype)
            return StateLayout(requests, snapshots, StateParts.of(kind, self.dtype, carries=carries))

        made = {kind: layout(kind) for kind in {*mixers.values()}}
        return {layer: made[kind] for layer, kind in mixers.items()}

    def _table_stays(self, plan: Plan) -> bool:
        """Whether the embedding table stays in the room that all else leaves.

        Only where computing is so fast that fetching rows counts, and where no weights are read from the disk either.
        """
        if 0 not in self.part.layers:
            return False
        place, catalog = self.table.place, self.planning.catalog
        reads = plan.residency.moving_bytes(place, catalog.group_bytes(place))
        left = plan.limits[place] - plan.memory.need(place)
        return len(self.planning.device.places) > 1 and not reads and self.table.nbytes <= left

    def _usual(self, tokens: int, why: str = "") -> ModelPlan:
        """With room for so many tokens; for one request of a whole context in any case."""
        if tokens == self._demand.longest:
            return self.planned(tokens, why, self.planning.available, "context_tokens")
        return self.planned(tokens, why, self.planning.limits, "kv_tokens")

    def planned_by_worth(self) -> ModelPlan:
        """With room for what makes most tokens per second, and for one request of a whole context in any case."""
        available, limits, demand, planned = self.planning.available, self.planning.limits, self._demand, self._usual
        usual = planned(demand.usual).memory
        roomy = {  # other models of this process want memory too: where no setting limits it, half of the rest is left
            place: limit if limit == available[place] else (usual.need(place) + limit) // 2
            for place, limit in limits.items()
        }

        def moves(tokens: int) -> PassBytes | None:
            plan, most = planned(tokens), limits if tokens <= demand.usual else roomy
            fits = all(plan.memory.need(place) <= limit for place, limit in most.items())
            return self.pass_bytes(plan) if fits else None

        return planned(
            *choose_room(demand, self.part.computed_bytes, self.planning.device.places[-1].disk_speeds, moves)
        )

    @property
    def _demand(self) -> Demand:
        return Demand.of(self.context_tokens, self.settings.max_requests, self.tokens)

    def pass_size(self, plan: ModelPlan, rates: PassRates) -> PassSize:
        """Prompts may delay others for as long as the bytes of a pass move, where no setting says otherwise."""
        settings, place, moved = self.settings, self.planning.device.places[-1], self.pass_bytes(plan)
        if settings.max_tokens_per_pass is not None:
            return PassSize(self.tokens, settings.max_pass_seconds)
        usual = max(LEAST_SECONDS, float(f"{rates.seconds(moved, place, 0):.2g}"))
        return PassSize(self.tokens, settings.max_pass_seconds or usual, rates.told(moved, place))

    def pass_bytes(self, plan: ModelPlan) -> PassBytes:
        """What a pass moves; reads are those of all sections with the same disk, which have as much to read."""
        catalog, kv = self.planning.catalog, plan.kv
        moving = [plan.residency.moving_bytes(place, catalog.group_bytes(place)) for place in plan.slots]
        read, sent = (sum(plan.kv_layouts[one].pass_bytes for one in layers) for layers in (kv.disk, kv.moving))
        if (experts := self.planning.experts) is not None:
            missed = experts.missed_bytes(plan.experts, self.part.chosen_experts)
            moving = [nbytes + missed[place] for place, nbytes in zip(plan.slots, moving, strict=True)]
        return PassBytes((moving[0] + read) * self.part.sections, sum(nbytes + sent for nbytes in moving[1:]))
