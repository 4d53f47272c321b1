"""The lines that `penstock run` and `penstock demo` print before and behind the text."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline.api import Model
from pipeline.engine.actor_names import EXPERT_READER, EXPERT_UPLOADER, READER, SCHEDULER, UPLOADER
from pipeline.generation.expert_record import ExpertsRecord
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.generation.section_record import SectionRecord
from pipeline.system.sizes import human_bytes

RESOURCES = {
    "disk": (READER, EXPERT_READER),
    "host-to-device link": (UPLOADER, EXPERT_UPLOADER),
    "compute": (SCHEDULER,),
}
"""What takes time, and the actors that keep it busy, at most one after the other."""


def opening_lines(model: Model) -> str:
    """Describe the run that begins, and its budget."""
    runtime, said = model.runtime, model.statistics()
    config, groups = runtime.config, sum(one.groups for one in said.sections)
    dtype = str(runtime.dtype).removeprefix("torch.")
    devices = ", ".join(one.device for one in said.sections)
    defaults = ", ".join(f"{name}={value}" for name, value in model.defaults.items())
    state_room = "" if runtime.state_room is None else f"state room {runtime.state_room}\n"
    return (
        f"model      {config.family} · {config.layers} layers · {human_bytes(said.weights.stored_bytes)} per pass in "
        f"{groups} weight groups · computes in {dtype} on {devices}\n"
        f"{_experts_there(model)}"
        f"reads      {said.reading}\n"
        f"checksums  {said.checksums.checking}\n"
        f"{_plans(model, said)}"
        f"kv room    {runtime.kv_room}\n"
        f"{state_room}"
        f"pass size  {runtime.pass_size}\n"
        f"sampling   {'the checkpoint says ' + defaults if defaults else 'greedy'}, unless an option says otherwise\n"
    )


def _plans(model: Model, said: ModelStatistics) -> str:
    """The memory plan; where there are several sections, the layers and the plan of each."""
    lines = ""
    for one, plan in zip(said.sections, model.runtime.plans, strict=True):
        if len(said.sections) > 1:
            where = " · ".join([*filter(None, [one.node]), one.device, layers_said(one.layers)])
            lines += f"section {one.number}  {where}{' and the head' * one.has_head}\n"
        lines += f"plan       {textwrap.indent(str(plan), ' ' * 11).lstrip()}\n"
    return lines


def layers_said(layers: Iterable[int]) -> str:
    """Layers in a row as their first and last: 0-3, 8, 10-11."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return "layers " + ", ".join("-".join(map(str, run)) for run in runs)


def _experts_there(model: Model) -> str:
    """A line on the experts of a model that has some, and on what the slots for them hold."""
    lines = [one.expert_line for one in model.runtime.sections if one.expert_line is not None]
    if not lines:
        return ""
    count = sum(line.room.count for line in lines)
    nbytes = sum(line.room.catalog.needed_bytes for line in lines)
    places = Counter[str]()
    for line in lines:
        for place, budget in zip(line.room.device.places, line.budgets, strict=True):
            places[place.name] += sum(budget.slots.values())
    slots = [f"{slots:,} in {place} memory" for place, slots in places.items()]
    return (
        f"experts    {count:,} of {human_bytes(nbytes // count)}, of which a token uses "
        f"{model.runtime.config.chosen_experts:,}; slots for {' and '.join(slots)}\n"
    )


def closing_lines(before: ModelStatistics, after: ModelStatistics, seconds: float) -> str:
    """Say how much was read, at what rate, and what bound the run."""
    passes = after.passes - before.passes
    read = after.bytes_read - before.bytes_read
    needed = max(1, after.bytes_needed - before.bytes_needed)
    busy = [_busy(*pair, seconds) for pair in zip(before.sections, after.sections, strict=True)]
    section, binding = max(
        ((number, label) for number, shares in enumerate(busy) for label in shares), key=lambda at: busy[at[0]][at[1]]
    )
    staying = sum(after.resident_groups.values())
    if after.moving_groups:
        rate = f" at {human_bytes(read / seconds)}/s, {read / needed:.3f} x needed"
        groups = f"at most {after.device_groups_peak} on the device, {after.host_groups_peak} in host memory"
        groups += f", beside {staying} that stay" * (staying > 0)
    else:
        rate = "; what stays is read once"
        groups = f"none move: all {staying} stay in memory, unless --no-residency lets them move"
    return (
        f"\npasses     {passes} in {seconds:.1f} s: {seconds / max(passes, 1):.3f} s per pass\n"
        f"read       {human_bytes(read)}{rate}\n"
        f"groups     {groups}\n"
        f"{_experts(before.experts, after.experts)}"
        f"{_times(before, after, busy, seconds)}"
        f"bound by   {binding}{f' in section {section}' * (len(busy) > 1)}"
    )


def _busy(before: SectionRecord, after: SectionRecord, seconds: float) -> dict[str, float]:
    """By resource of a section, the share of the time in which it worked."""
    earlier, now = before.busy_seconds, after.busy_seconds
    return {
        label: min(1.0, sum(now.get(name, 0.0) - earlier.get(name, 0.0) for name in names) / seconds)
        for label, names in RESOURCES.items()
    }


def _times(before: ModelStatistics, after: ModelStatistics, busy: Sequence[Mapping[str, float]], seconds: float) -> str:
    """A line of shares; of several sections one for each, with how long passes waited for it."""
    lines = ""
    for was, one, shares in zip(before.sections, after.sections, busy, strict=True):
        said = " · ".join(f"{label} busy {share:.0%}" for label, share in shares.items())
        if one.waited_seconds is None or was.waited_seconds is None:
            lines += f"time       {said}\n"
        else:
            waited = (one.waited_seconds - was.waited_seconds) / seconds
            lines += f"section {one.number}  {one} · passes waited {waited:.0%} of the time for it · {said}\n"
    return lines


def _experts(before: ExpertsRecord | None, after: ExpertsRecord | None) -> str:
    """A line on those that were wanted, place by place in the order in which they are asked."""
    if before is None or after is None:
        return ""
    found = []
    for place in reversed([*after.hits]):
        hits = after.hits[place] - before.hits.get(place, 0)
        asked = hits + after.misses[place] - before.misses.get(place, 0)
        found.append(f"{hits:,} of {asked:,} found in {place.removeprefix('expert ')} memory")
    said = f"{', '.join(found)}; {human_bytes(after.bytes_read - before.bytes_read)} read"
    if on_cpu := sum(after.on_cpu.values()) - sum(before.on_cpu.values()):
        kept_back = human_bytes(after.bytes_not_uploaded - before.bytes_not_uploaded)
        said += f"; {on_cpu:,} computed by the CPU, {kept_back} not copied"
    return f"experts    {said}\n"
