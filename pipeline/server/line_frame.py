"""What the page shows of a line, made of what its model had counted at two moments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.engine.actor_names import KV_SWAPPER, READER, SCHEDULER, STAGER, UPLOADER
from pipeline.tools.trace.recording import HANDING_ON
from pipeline.tools.trace.summary import bound_sentence

if TYPE_CHECKING:
    from pipeline.generation.model_runtime import ModelRuntime
    from pipeline.generation.model_statistics import ModelStatistics, PlaceRecord

ACTORS = (READER, STAGER, UPLOADER, KV_SWAPPER, SCHEDULER)
"""The five that are shown, in the order in which bytes pass them; where all KV blocks stay there is no swapper."""
AT_REST = "At rest: no request to compute."


@dataclass(frozen=True, slots=True)
class Moment:
    """What a model had counted at a time, in seconds of any clock."""

    at: float
    counted: "ModelStatistics"


def line_frame(runtime: "ModelRuntime", before: Moment, now: Moment) -> dict[str, Any]:
    """What happened between two moments, and what is there now: plain data, in bytes, seconds and shares of the time.

    A share or a rate is None where the line has no such actor or link. Actors count anew when a line starts anew:
    what is less than before has not grown.
    """
    seconds = max(now.at - before.at, 1e-9)
    counted, earlier = now.counted, before.counted
    groups = _grown(earlier.channels[SCHEDULER].sent, counted.channels[SCHEDULER].sent)
    requests = counted.requests
    return {
        "says": _sentence(earlier, counted, seconds),
        "tokens_per_second": _grown(earlier.tokens, counted.tokens) / seconds,
        "pass_seconds": seconds * len(runtime.catalog.order) / groups if groups else None,
        "requests": {"running": requests.running, "waiting": requests.waiting + requests.tokenizing},
        "actors": [_actor(name, earlier, counted, seconds) for name in ACTORS],
        "budgets": [
            {"place": place, "held": budget.held, "cooling": budget.cooling, "slots": budget.capacity}
            for place, budget in counted.budgets.items()
        ],
        "links": _links(runtime, earlier, counted, seconds),
        "tiers": _tiers(runtime, counted.kv_blocks.places),
    }


def _grown(before: float, now: float) -> float:
    return max(0.0, now - before)


def _shares(earlier: Mapping[str, float], counted: Mapping[str, float], seconds: float) -> dict[str, float]:
    """By actor, the share of the time; an operation counts when it has ended, also for what came before."""
    return {name: min(1.0, _grown(earlier.get(name, 0.0), value) / seconds) for name, value in counted.items()}


def _sentence(earlier: "ModelStatistics", counted: "ModelStatistics", seconds: float) -> str:
    if not counted.requests.running:
        return AT_REST
    shares = _shares(earlier.busy_seconds, counted.busy_seconds, seconds)
    worked = {name: share for name, share in shares.items() if name not in HANDING_ON}
    return bound_sentence(worked)


def _actor(name: str, earlier: "ModelStatistics", counted: "ModelStatistics", seconds: float) -> dict[str, Any]:
    if name not in counted.channels:
        return {"name": name, "busy": None, "waiting": None, "queue": None}
    queue = counted.channels[name]
    return {
        "name": name,
        "busy": _shares(earlier.busy_seconds, counted.busy_seconds, seconds)[name],
        "waiting": _shares(earlier.stalled_seconds, counted.stalled_seconds, seconds)[name],
        "queue": {"depth": queue.depth, "capacity": queue.capacity},
    }


def _links(
    runtime: "ModelRuntime", earlier: "ModelStatistics", counted: "ModelStatistics", seconds: float
) -> list[dict[str, Any]]:
    was, now = earlier.kv_blocks, counted.kv_blocks
    read = _grown(earlier.bytes_read + was.bytes_read, counted.bytes_read + now.bytes_read)
    copied = _grown(earlier.bytes_uploaded, counted.bytes_uploaded) if len(runtime.device.places) > 1 else None
    moves = KV_SWAPPER in counted.channels
    grown = {
        "disk": read,
        "h2d": copied,
        "kv_in": _grown(was.bytes_h2d, now.bytes_h2d) if moves else None,
        "kv_out": _grown(was.bytes_d2h, now.bytes_d2h) if moves else None,
    }
    return [
        {"name": name, "bytes_per_second": None if nbytes is None else nbytes / seconds}
        for name, nbytes in grown.items()
    ]


def _tiers(runtime: "ModelRuntime", kv_places: "Mapping[str, PlaceRecord]") -> list[dict[str, Any]]:
    """By place, the nearest to computing first, what lies there: weights that stay, those that move, and KV blocks."""
    places = [place.name for place in reversed(runtime.device.places)]
    slots = {budget.name: budget.slots for budget in runtime.line.budgets}
    weights, moving = {"disk": 0}, {"disk": runtime.moving_bytes}
    for place in places:
        sizes, slot_bytes = runtime.catalog.group_bytes(place), runtime.catalog.slot_bytes(place)
        weights[place] = sum(sizes[key] for key in runtime.residency.stays(place))
        moving[place] = sum(count * slot_bytes[kind] for kind, count in slots[place].items())
    rows = []
    for place in (*places, "disk"):
        # KV blocks of the device are where computing reads: in host memory, if that is the only place.
        blocks = [one for name, one in kv_places.items() if place == (places[0] if name == "device" else name)]
        used, cached = (sum(getattr(one, name) for one in blocks) for name in ("used_bytes", "cached_bytes"))
        free = sum(one.total_bytes for one in blocks) - used - cached
        kv = {"kv_used": used, "kv_cached": cached, "kv_free": free}
        rows.append({"place": place, "weights": weights[place], "moving": moving[place], **kv})
    return rows
