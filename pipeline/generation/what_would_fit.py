"""What to change where a plan does not fit: only what was tried, so that following the advice works."""

import math
from collections.abc import Callable, Iterator, Mapping
from tempfile import gettempdir
from typing import Any

from pipeline.config import Config
from pipeline.generation.model_plan import ModelPlan
from pipeline.system.sizes import human_bytes, parse_bytes

LEAST = {
    "gpu_groups": 1,
    "host_groups": 1,
    "gpu_experts": 1,
    "host_experts": 1,
    "kv_tokens": 64,
    "context_tokens": 64,
    "max_tokens_per_pass": 16,
    "max_requests": 1,
    "state_snapshots": 0,
}
"""Settings that take memory, and values below which a model is of little use."""
SPARE_BYTES = 4 << 20
"""What a process may grow by until the advice has been followed."""
RAISED = (1.0, 1.25)
"""Of several devices more may be needed, as layers are dealt anew by what each has room for."""
MOST_WAYS = 3

Try = Callable[[Mapping[str, Any]], ModelPlan | None]
"""The plan with other settings; None where they contradict each other."""


def what_would_fit(plan: ModelPlan, settings: Config, draw: Try) -> str:
    """Ways to make it fit, each by itself: a higher limit, one setting that is lower, or several."""

    def fits(changes: Mapping[str, Any]) -> bool:
        memory = plan.memory
        have = {
            name: memory.available[place] * memory.divided.get(place, 1) for place, name in memory.limited_by.items()
        }
        limits = have | {name: parse_bytes(name, changes[name]) for name in have if name in changes}
        drawn = draw({**changes, **{name: nbytes - SPARE_BYTES for name, nbytes in limits.items()}})
        return drawn is not None and drawn.memory.fits()

    higher = (_raised(plan, settings, times) for times in RAISED)
    raised = next((one for one in higher if one and fits(one)), None)
    ways = [] if raised is None else [_changes(raised, "at least")]
    knobs = _knobs(plan)
    for knob in knobs:
        highest = next((value for value in _lower(knob, plan, settings) if fits({knob: value})), None)
        ways += [] if highest is None else [_changes({knob: highest}, "at most")]
    if settings.kv_disk is None and fits({"kv_disk": gettempdir()}):
        ways.append("kv_disk to a folder on a disk")
    several: dict[str, int] = {}
    while not ways and knobs:
        knob = knobs.pop(0)
        if lower := [*_lower(knob, plan, settings)]:
            several[knob] = lower[-1]
        ways += [_changes(several, "at most")] if fits(several) else []
    bounded = any(place in plan.memory.bounds for place in plan.memory.short_places())
    if ways:
        return f"{'raise the limit, or ' if bounded else ''}set {', or '.join(ways[:MOST_WAYS])}"
    return f"{'raise the limit; ' if bounded else ''}{_free(plan)}"


def _raised(plan: ModelPlan, settings: Config, times: float) -> dict[str, str]:
    """Limits that the user has set, raised to so many times what is needed."""
    memory = plan.memory
    short = {
        name: memory.need(place) * memory.divided.get(place, 1)
        for place, name in memory.limited_by.items()
        if place in memory.short_places()
    }
    if any(getattr(settings, name) is None for name in short):
        return {}
    return {name: f"{math.ceil(times * (need + 2 * SPARE_BYTES) / 10**6)}MB" for name, need in short.items()}


def _knobs(plan: ModelPlan) -> list[str]:
    """Settings behind what is held where there is too little, those that hold most first."""
    held = [one for place in plan.memory.short_places() for one in plan.memory.held(place)]
    held.sort(key=lambda holding: -holding.nbytes)
    return list(dict.fromkeys(knob for one in held for knob in LEAST if one.knob.split(",")[0] == knob))


def _lower(knob: str, plan: ModelPlan, settings: Config) -> Iterator[int]:
    """Lower values of a setting, the nearest first."""
    planned = {"gpu_groups": plan.groups, "context_tokens": plan.context_tokens}
    planned["max_tokens_per_pass"] = plan.pass_size.tokens
    slots = max(plan.experts.values(), default=1)
    planned |= {name: getattr(settings, name) or slots for name in ("gpu_experts", "host_experts")}
    if plan.state_room is not None:
        planned["state_snapshots"] = plan.state_room.snapshots
    value = planned.get(knob) or getattr(settings, knob) or plan.kv_room.tokens
    step_down = knob in ("gpu_groups", "host_groups")
    while value > LEAST[knob]:
        value = max(LEAST[knob], value - 1 if step_down and value <= 8 else value // 2)
        yield value


def _changes(changes: Mapping[str, object], bound: str) -> str:
    return " and ".join(f"{name} to {bound} {value}" for name, value in changes.items())


def _free(plan: ModelPlan) -> str:
    """Where no setting helps."""
    memory = plan.memory
    names = {"disk": "on the disk of kv_disk"}
    short = [
        f"{human_bytes(memory.need(place) - memory.available[place])} {names.get(place, f'of {place} memory')}"
        for place in memory.short_places()
    ]
    others = any(one.holder.startswith("promised") for one in memory.holdings)
    close = ", or close the other model" if others else ""
    return f"no setting is sure to make it fit: free {' and '.join(short)}{close}"
