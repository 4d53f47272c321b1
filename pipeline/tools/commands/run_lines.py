"""The lines that `penstock run` and `penstock demo` print before and behind the text."""

import textwrap

from pipeline.api import Model
from pipeline.engine.actor_names import EXPERT_READER, EXPERT_UPLOADER, READER, SCHEDULER, UPLOADER
from pipeline.generation.expert_record import ExpertsRecord
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.system.sizes import human_bytes

RESOURCES = {
    "disk": (READER, EXPERT_READER),
    "host-to-device link": (UPLOADER, EXPERT_UPLOADER),
    "compute": (SCHEDULER,),
}
"""What takes time, and the actors that keep it busy, at most one after the other."""


def opening_lines(model: Model) -> str:
    """Describe the run that begins, and its budget."""
    runtime = model.runtime
    config, needed = runtime.config, runtime.catalog.needed_bytes
    dtype = str(runtime.dtype).removeprefix("torch.")
    defaults = ", ".join(f"{name}={value}" for name, value in model.defaults.items())
    state_room = "" if runtime.state_room is None else f"state room {runtime.state_room}\n"
    return (
        f"model      {config.family} · {config.layers} layers · {human_bytes(needed)} per pass in "
        f"{len(runtime.catalog.order)} weight groups · computes in {dtype} on {runtime.device.torch_device}\n"
        f"{_experts_there(model)}"
        f"reads      {runtime.reading}\n"
        f"checksums  {runtime.checking}\n"
        f"plan       {textwrap.indent(str(runtime.plan), ' ' * 11).lstrip()}\n"
        f"kv room    {runtime.kv_room}\n"
        f"{state_room}"
        f"pass size  {runtime.pass_size}\n"
        f"sampling   {'the checkpoint says ' + defaults if defaults else 'greedy'}, unless an option says otherwise\n"
    )


def _experts_there(model: Model) -> str:
    """A line on the experts of a model that has some, and on what the slots for them hold."""
    line = model.runtime.expert_line
    if line is None:
        return ""
    catalog, count = line.room.catalog, line.room.count
    slots = [f"{sum(one.slots.values()):,} in {one.name.removeprefix('expert ')} memory" for one in line.budgets]
    return (
        f"experts    {count:,} of {human_bytes(catalog.needed_bytes // count)}, of which a token uses "
        f"{model.runtime.config.chosen_experts:,}; slots for {' and '.join(slots)}\n"
    )


def closing_lines(before: ModelStatistics, after: ModelStatistics, seconds: float) -> str:
    """Say how much was read, at what rate, and what bound the run."""
    passes = after.passes - before.passes
    read = after.bytes_read - before.bytes_read
    needed = max(1, after.bytes_needed - before.bytes_needed)
    earlier, now = before.busy_seconds, after.busy_seconds
    busy = {
        label: min(1.0, sum(now.get(name, 0.0) - earlier.get(name, 0.0) for name in names) / seconds)
        for label, names in RESOURCES.items()
    }
    binding = max(busy, key=lambda label: busy[label])
    staying = sum(after.resident_groups.values())
    if after.moving_groups:
        rate = f" at {human_bytes(read / seconds)}/s, {read / needed:.3f} x needed"
        groups = f"at most {after.device_groups_peak} on the device, {after.host_groups_peak} in host memory"
        groups += f", beside {staying} that stay" * (staying > 0)
    else:
        rate = "; what stays is read once"
        groups = f"none move: all {staying} stay in memory, unless --no-residency lets them move"
    shares = " · ".join(f"{label} busy {share:.0%}" for label, share in busy.items())
    return (
        f"\npasses     {passes} in {seconds:.1f} s: {seconds / max(passes, 1):.3f} s per pass\n"
        f"read       {human_bytes(read)}{rate}\n"
        f"groups     {groups}\n"
        f"{_experts(before.experts, after.experts)}"
        f"time       {shares}\n"
        f"bound by   {binding}"
    )


def _experts(before: ExpertsRecord | None, after: ExpertsRecord | None) -> str:
    """A line on those that were wanted, place by place in the order in which they are asked."""
    if before is None or after is None:
        return ""
    found = []
    for place in reversed([*after.hits]):
        hits = after.hits[place] - before.hits.get(place, 0)
        asked = hits + after.misses[place] - before.misses.get(place, 0)
        found.append(f"{hits:,} of {asked:,} found in {place.removeprefix('expert ')} memory")
    return f"experts    {', '.join(found)}; {human_bytes(after.bytes_read - before.bytes_read)} read\n"
