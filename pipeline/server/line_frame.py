"""What the page shows of lines, made of what their model had counted at two moments."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from actors.core.line import numbered
from pipeline.engine.actor_names import KV_SWAPPER, READER, SCHEDULER, STAGER, UPLOADER
from pipeline.tools.trace.recording import HANDING_ON
from pipeline.tools.trace.sections import plain_names
from pipeline.tools.trace.summary import bound_sentence

if TYPE_CHECKING:
    from pipeline.generation.model_statistics import ModelStatistics
    from pipeline.generation.section_record import SectionRecord

ACTORS = {
    READER: ("Disk reader", "reads"),
    STAGER: ("Pinned-memory stager", "hands on"),
    UPLOADER: ("GPU uploader", "copies"),
    KV_SWAPPER: ("KV swapper", "swaps"),
    SCHEDULER: ("Compute scheduler", "computes"),
}
"""The five that are shown, in the order in which bytes pass them; where all KV blocks stay there is no swapper."""
LINKS = {"disk": "Disk", "h2d": "Host to device", "kv_in": "KV to device", "kv_out": "KV from device"}
PLACES = {
    "device": "Device",
    "host": "Host memory",
    "disk": "Disk",
    "kv device": "KV, device",
    "kv host": "KV, host memory",
}
AT_REST = "At rest: no request to compute."


@dataclass(frozen=True, slots=True)
class Moment:
    """What a model had counted at a time, in seconds of any clock."""

    at: float
    counted: "ModelStatistics"


@dataclass(frozen=True, slots=True)
class SectionBetween:
    """A section at two moments; `number` is None for the only one."""

    number: int | None
    before: "SectionRecord"
    now: "SectionRecord"


Rows: TypeAlias = Iterator[dict[str, Any]]


def line_frame(before: Moment, now: Moment) -> dict[str, Any]:
    """What happened between two moments, and what is there now: plain data, in bytes, seconds and shares of the time.

    Rows that are alike in several sections follow one another, and have the number of theirs. A share or a rate is None
    where a line has no such actor or link. Actors count anew when a line starts anew: what is less than before has not
    grown.
    """
    seconds = max(now.at - before.at, 1e-9)
    counted, earlier = now.counted, before.counted
    several = len(counted.sections) > 1
    pairs = zip(earlier.sections, counted.sections, strict=True)
    sections = [SectionBetween(one.number if several else None, was, one) for was, one in pairs]
    schedulers = [numbered(SCHEDULER, one.number) for one in sections]
    groups = sum(_grown(earlier.channels[name].sent, counted.channels[name].sent) for name in schedulers)
    pass_groups, requests = sum(one.now.groups for one in sections), counted.requests
    return {
        "says": _sentence(earlier, counted, seconds),
        "tokens_per_second": _grown(earlier.tokens, counted.tokens) / seconds,
        "pass_seconds": seconds * pass_groups / groups if groups else None,
        "requests": {"running": requests.running, "waiting": requests.waiting + requests.tokenizing},
        "sections": [_section(one, seconds) for one in sections if several],
        "actors": [_actor(name, one, counted, seconds) for name in ACTORS for one in sections],
        "budgets": [*_budgets(counted, sections)],
        "links": [*_links(sections, seconds)],
        "tiers": [*_tiers(counted, sections)],
    }


def _grown(before: float, now: float) -> float:
    return max(0.0, now - before)


def _share(before: float, now: float, seconds: float) -> float:
    """The share of the time; an operation counts when it has ended, also for what came before."""
    return min(1.0, _grown(before, now) / seconds)


def _sentence(earlier: "ModelStatistics", counted: "ModelStatistics", seconds: float) -> str:
    if not counted.requests.running:
        return AT_REST
    was, names = earlier.busy_seconds, plain_names(counted.busy_seconds)
    worked = {name: busy for name, busy in counted.busy_seconds.items() if names[name][0] not in HANDING_ON}
    return bound_sentence({name: _share(was.get(name, 0.0), busy, seconds) for name, busy in worked.items()})


def _labelled(label: str, section: SectionBetween) -> dict[str, Any]:
    return {"label": numbered(label, section.number), "section": section.number}


def _section(section: SectionBetween, seconds: float) -> dict[str, Any]:
    now, was = section.now, section.before
    waited = _share(was.waited_seconds or 0.0, now.waited_seconds or 0.0, seconds)
    return {"label": f"{now.number} · {now}", "section": section.number, "waited": waited}


def _actor(name: str, section: SectionBetween, counted: "ModelStatistics", seconds: float) -> dict[str, Any]:
    label, verb = ACTORS[name]
    row = {"name": name, **_labelled(label, section), "verb": verb}
    now, was = section.now, section.before
    if name not in now.busy_seconds:
        return {**row, "busy": None, "waiting": None, "queue": None}
    queue = counted.channels[numbered(name, section.number)]
    return {
        **row,
        "busy": _share(was.busy_seconds.get(name, 0.0), now.busy_seconds[name], seconds),
        "waiting": _share(was.stalled_seconds.get(name, 0.0), now.stalled_seconds[name], seconds),
        "queue": {"depth": queue.depth, "capacity": queue.capacity},
    }


def _budgets(counted: "ModelStatistics", sections: list[SectionBetween]) -> Rows:
    numbers = [one.number for one in sections]
    suffixes = [numbered("", number) for number in numbers]
    places = dict.fromkeys(
        name.removesuffix(suffix) for suffix in suffixes for name in counted.budgets if name.endswith(suffix)
    )
    for place in places:
        for number in numbers:
            if (budget := counted.budgets.get(numbered(place, number))) is not None:
                slots = {"held": budget.held, "cooling": budget.cooling, "slots": budget.capacity}
                label = numbered(PLACES.get(place, place), number)
                yield {"place": place, "label": label, "section": number, **slots}


def _links(sections: list[SectionBetween], seconds: float) -> Rows:
    for name, label in LINKS.items():
        for one in sections:
            nbytes = _moved(one)[name]
            row = {"name": name, **_labelled(label, one)}
            yield {**row, "bytes_per_second": None if nbytes is None else nbytes / seconds}


def _moved(section: SectionBetween) -> dict[str, float | None]:
    """The bytes that went over each link of a section."""
    was, now = section.before, section.now
    kv_was, kv_now = was.kv, now.kv
    copies, moves = len(now.resident_groups) > 1, KV_SWAPPER in now.busy_seconds
    return {
        "disk": _grown(was.bytes_read + kv_was.bytes_read, now.bytes_read + kv_now.bytes_read),
        "h2d": _grown(was.bytes_uploaded, now.bytes_uploaded) if copies else None,
        "kv_in": _grown(kv_was.bytes_h2d, kv_now.bytes_h2d) if moves else None,
        "kv_out": _grown(kv_was.bytes_d2h, kv_now.bytes_d2h) if moves else None,
    }


def _tiers(counted: "ModelStatistics", sections: list[SectionBetween]) -> Rows:
    """By place, the nearest to computing first, what lies there: weights that stay, those that move, and KV blocks."""
    blocks, cached = counted.kv_blocks, counted.prefixes.cached_blocks
    counts = {"kv_used": blocks.used, "kv_cached": cached, "kv_free": blocks.total - blocks.used - cached}
    for place in sections[0].now.weights:
        for one in sections:
            weights, sizes = one.now.weights, one.now.kv.block_bytes
            nearest = next(iter(weights))
            # KV blocks of the device are where computing reads: in host memory, if that is the only place.
            block_bytes = sum(size for kept, size in sizes.items() if place == (nearest if kept == "device" else kept))
            held = {"weights": weights[place].stays, "moving": weights[place].moves}
            kv = {name: count * block_bytes for name, count in counts.items()}
            yield {"place": place, **_labelled(PLACES[place], one), **held, **kv}
