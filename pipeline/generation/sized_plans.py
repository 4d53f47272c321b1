"""Plans of which each has passes of another size: the rates of a machine choose one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.expert_room import ExpertRoom
from pipeline.engine.plan import Planning
from pipeline.errors import ConfigError
from pipeline.generation.model_plan import ModelPlan, Rooms
from pipeline.generation.part import Agreed, Part
from pipeline.generation.pass_holdings import pass_holdings
from pipeline.generation.pass_rates import PassRates
from pipeline.generation.pass_size import choose_size, sizes
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroups
from pipeline.models.model_config import ModelConfig
from pipeline.state.kv_room import PassBytes
from pipeline.system.host_memory import free_disk_bytes
from pipeline.system.memory_plan import Holding

DEFAULT_CONTEXT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class SizedPlans:
    """Plans of which each has passes of another size, with how they were made. Rates choose one, and fit its passes.

    Where it is `agreed` already how much room there is, that is the only one.
    """

    _each: Sequence[tuple[Rooms, ModelPlan]]
    _rooms: Callable[[int], Rooms]
    _agreed: Agreed | None

    @property
    def moved(self) -> PassBytes:
        """The most that a pass reads, and sends, of any of them."""
        each = [room.pass_bytes(plan) for room, plan in self._each]
        return PassBytes(max(one.read for one in each), max(one.sent for one in each))

    def best(self, rates: PassRates, agreed: Agreed | None = None) -> ModelPlan:
        """The one with which a request costs the least at these rates, with as many slots as they ask for.

        What sections have `agreed` on is kept to, though it may not fit.
        """
        agreed = agreed or self._agreed
        if agreed is None:
            sized = {room.tokens: (room, plan) for room, plan in self._each}
            costs = {tokens: room.request_seconds(plan, rates) for tokens, (room, plan) in sized.items()}
            room, plan = sized[choose_size(costs)]
        else:
            room = self._rooms(agreed.pass_tokens)
            plan = room.best(agreed)
        room, plan = room.for_link(plan, rates, agreed)
        return replace(plan, pass_size=room.pass_size(plan, rates))


def make_plans(
    model: ModelConfig,
    settings: Config,
    groups: WeightGroups,
    catalog: WeightCatalog,
    device: Device,
    dtype: torch.dtype,
    tokenizer_bytes: int,
    experts: ExpertRoom | None,
    part: Part,
    agreed: Agreed | None = None,
) -> SizedPlans:
    """Add everything up. KV blocks get what is left: the device first, then host memory, then the disk.

    What they leave holds weight groups for good. Where `kv_tokens` does not say how many there are, they get what makes
    most tokens per second. There is a plan for each size of a pass that could be best, or for that of
    `max_tokens_per_pass`, or for what sections have `agreed` on. It may not fit: `Plan.memory.fits` tells. Raises
    ConfigError for settings that contradict each other.
    """
    context_tokens = _context_tokens(model, settings)
    disk = {} if settings.kv_disk is None else {"disk": free_disk_bytes(settings.kv_disk) // part.sections}
    tokenizer = Holding("tokenizer", device.places[0].name, tokenizer_bytes, "")
    fixed = (tokenizer,) * bool(tokenizer_bytes)
    planning = Planning.of(settings, catalog, device, fixed, disk, experts, part.sharing)
    table_bytes = sum(tensor.length for tensor in groups.embed.tensors)
    table = Holding("embedding table", device.places[0].name, table_bytes, "residency")

    def rooms(tokens: int) -> Rooms:
        held = pass_holdings(model, settings, groups, device, dtype, context_tokens, tokens)
        return Rooms(model, settings, dtype, part, context_tokens, planning, tokens, held, table)

    only = settings.max_tokens_per_pass if agreed is None else agreed.pass_tokens
    if only is not None:
        room = rooms(only)
        return SizedPlans([(room, room.best(agreed))], rooms, agreed)
    plans: list[tuple[Rooms, ModelPlan]] = []
    for tokens in sizes(context_tokens, settings.max_requests):
        room = rooms(tokens)
        plan = room.best()
        if plans and not room.fits(plan):
            break
        plans.append((room, plan))
    return SizedPlans(plans, rooms, None)


def _context_tokens(model: ModelConfig, settings: Config) -> int:
    """How many a request may have. Raises ConfigError where positions or room for KV blocks are fewer."""
    tokens = min(model.max_positions, DEFAULT_CONTEXT_TOKENS)
    if settings.context_tokens is not None:
        tokens = settings.context_tokens
        if tokens > model.max_positions:
            made_for = f"the model was made for {model.max_positions} positions"
            raise ConfigError(f"context_tokens: {made_for}, have {tokens}")
    if settings.kv_tokens is not None and settings.kv_tokens < tokens:
        raise ConfigError(
            f"kv_tokens: need at least the {tokens} of context_tokens, so that any request can be held alone, "
            f"have {settings.kv_tokens}"
        )
    return tokens
