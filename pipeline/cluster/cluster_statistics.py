"""What sections on nodes have counted, and what that is together: each report of a pass brings its counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.core.line import numbered
from pipeline.engine.runtime import added_up, engine_counters
from pipeline.generation.delivery import Delivery
from pipeline.generation.model_statistics import ModelStatistics, WeightsRecord, program_counters
from pipeline.generation.section_record import SectionRecord, section_record
from pipeline.generation.section_runtime import SectionRuntime

BY_ACTOR = ("busy_seconds", "stalled_seconds", "channels", "budgets")
"""Counters by the names of actors, queues and budgets, which are the same on each node."""
OF_ALL = ("policy", "reading", "checksums")
"""What cannot be added up; that of the first section stands for all."""


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """Counters of the section that one process computes, since it has opened it."""

    engine: Mapping[str, Any]
    weights: WeightsRecord
    record: SectionRecord


def count(number: int, runtime: SectionRuntime, node: str, waited_seconds: float) -> NodeCounts:
    """Read all counters of a section now."""
    catalog, itemsize = runtime.catalog, runtime.drawn.dtype.itemsize
    weights = WeightsRecord(catalog.needed_bytes, sum(catalog.parameters().values()) * itemsize)
    return NodeCounts(engine_counters([runtime]), weights, section_record(number, runtime, waited_seconds, node))


def cluster_statistics(delivery: Delivery, counted: Sequence[NodeCounts]) -> ModelStatistics:
    """Those of all sections; where there are several, actors, queues and budgets get the numbers of theirs."""
    weights = [one.weights for one in counted]
    return ModelStatistics(
        **added_up([_named(number if len(counted) > 1 else None, one.engine) for number, one in enumerate(counted)]),
        **{name: counted[0].engine[name] for name in OF_ALL},
        **program_counters(delivery, [one.record for one in counted]),
        weights=WeightsRecord(sum(one.stored_bytes for one in weights), sum(one.computed_bytes for one in weights)),
        experts=None,
    )


def _named(number: int | None, engine: Mapping[str, Any]) -> dict[str, Any]:
    named = {kind: {numbered(name, number): value for name, value in engine[kind].items()} for kind in BY_ACTOR}
    return {**{name: value for name, value in engine.items() if name not in OF_ALL}, **named}
