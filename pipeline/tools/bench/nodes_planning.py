"""What a model would take on several nodes that are alike, before any is bought: by sizes and rates alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.devices.port import Device
from pipeline.engine.dealing import Share, deal
from pipeline.errors import ConfigError
from pipeline.generation.blueprint import Blueprint, Drawing
from pipeline.generation.drawn_sections import shares_of
from pipeline.models.model_config import ModelConfig
from pipeline.state.kv_room import Demand
from pipeline.tools.bench.arm_program import Progress
from pipeline.tools.bench.forecast import Rates
from pipeline.tools.bench.sections_forecast import SectionsForecast, sections_forecast
from pipeline.tools.routing.recorded_routing import RecordedRouting

COUNTS = (1, 2, 4, 8, 16)
HOP_SECONDS, HOP_SECONDS_PER_BYTE = 1.1e-3, 2.9e-9
"""From one process to another over Ray on one machine, measured with rows of up to 1 MB; a network adds to it."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """So many nodes. Each has a plan like `drawn`, that of the one with most layers, or too little memory for it.

    `one` is a pass of one request, `many` one of as many as may run and have room.
    """

    count: int
    drawn: Blueprint
    dealt: Sequence[int]
    one: SectionsForecast
    many: SectionsForecast

    @property
    def shortage(self) -> str:
        """What a node lacks; empty where the plan fits."""
        memory = self.drawn.plan.memory
        return "" if memory.fits() else memory.shortage()

    @property
    def staying_share(self) -> float:
        """How much of a node's weights stays in its memory, of either kind."""
        plan, first = self.drawn.plan, self.drawn.catalog.places[0]
        whole = self.drawn.catalog.needed_bytes
        stays = whole - plan.residency.moving_bytes(first, self.drawn.catalog.group_bytes(first))
        if (experts := self.drawn.experts) is not None:
            kept = min(experts.count, sum(plan.experts.values()))
            whole += experts.catalog.needed_bytes
            stays += experts.catalog.needed_bytes * kept // experts.count
        return max(0.0, stays / whole)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        if self.shortage:
            return {"nodes": self.count, "does_not_fit": self.shortage}
        return {
            "nodes": self.count,
            "layers_of_a_node": len(self.drawn.plan.kv_layouts),
            "staying_share": self.staying_share,
            "kv_tokens": self.drawn.plan.kv_room.tokens,
            "one_request": self.one.as_dict(),
            "many_requests": self.many.as_dict(),
        }


def check_nodes(count: int, model: ModelConfig) -> None:
    """Raise ConfigError where the model cannot be cut over so many nodes."""
    if not 1 <= count <= _most(model):
        each = "runs of layers that need each other" if model.joined_layers else "layers of the model"
        raise ConfigError(f"--nodes: need a number from 1 to the {_most(model)} {each}, have {count}")


def _most(model: ModelConfig) -> int:
    return model.layers - len(model.joined_layers)


def plan_nodes(
    model: ModelConfig,
    checkpoint: Checkpoint,
    settings: Config,
    device: Device,
    rates: Rates,
    count: int,
    hop_seconds: float | None,
    routing: RecordedRouting | None,
    progress: Progress,
) -> list[Nodes]:
    """So many nodes with such a device, disk and memory each, and other numbers of them, in rising order.

    A hop takes so many seconds, or as long as rows of the pass took when it was measured. Raises ConfigError with what
    a node lacks.
    """
    drawing = Drawing.of(model, checkpoint, settings)

    def planned(nodes: int) -> Nodes:
        progress(f"planning {nodes} node{'s' * (nodes > 1)}")
        drawn, dealt = _drawn(drawing, device, nodes, rates, hop_seconds or HOP_SECONDS)
        plan = drawn.plan
        demand = Demand.of(plan.context_tokens, settings.max_requests, plan.pass_size.tokens)
        row_bytes = model.hidden_width * drawn.dtype.itemsize

        def passed(tokens: int) -> SectionsForecast:
            hop = hop_seconds or HOP_SECONDS + HOP_SECONDS_PER_BYTE * tokens * row_bytes
            return sections_forecast([drawn] * nodes, dealt, rates, tokens, hop, routing)

        return Nodes(nodes, drawn, dealt, passed(1), passed(max(1, demand.share(plan.kv_room.tokens))))

    counts = sorted({*(one for one in COUNTS if one <= _most(model)), count})
    found = [planned(nodes) for nodes in counts]
    asked = next(one for one in found if one.count == count)
    if asked.shortage:
        enough = next((f"; {one.count} nodes would do" for one in found if not one.shortage), "")
        raise ConfigError(f"--nodes: each of {count} lacks {asked.shortage}{enough}")
    return found


def _drawn(
    drawing: Drawing, device: Device, nodes: int, rates: Rates, hop_seconds: float
) -> tuple[Blueprint, Sequence[int]]:
    """The plan of the node with most to hold, and how layers are dealt to nodes with as much room as it has."""
    layer_bytes, joined = drawing.groups.layer_bytes, drawing.model.joined_layers
    evenly = deal(layer_bytes, [Share(0, 1.0, 2 * max(layer_bytes))] * nodes, joined=joined)
    parts = [{layer for layer, one in enumerate(evenly) if one == node} for node in range(nodes)]
    most = max(parts, key=lambda layers: sum(layer_bytes[layer] for layer in layers))
    drawn = drawing.drawn(device, most).at_rates(rates.of_passes)
    shares = shares_of([drawn], rates.of_passes) * nodes
    return drawn, deal(layer_bytes, shares, hop_seconds, joined=joined)
