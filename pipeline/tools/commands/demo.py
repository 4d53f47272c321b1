"""`penstock demo`: the bundled model under a budget smaller than itself, the five actors shown at work."""

import argparse
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from actors.core.trace import Trace
from pipeline.api import Model
from pipeline.engine.actor_names import ACTORS
from pipeline.system.hub_cache import BUNDLED, BUNDLED_INT4
from pipeline.system.sizes import human_bytes
from pipeline.system.table import aligned
from pipeline.tools.bench.candidates import Samples
from pipeline.tools.bench.policy_runs import OutputsDiffer
from pipeline.tools.commands.answer import Answer
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import beside_noise, nothing_moved, with_remarks
from pipeline.tools.commands.run_lines import closing_lines, opening_lines
from pipeline.tools.commands.run_prompt import stream_text
from pipeline.tools.commands.timeline import LEGEND, NAME_WIDTH, timeline

PROMPT = 'class Stack:\n    """A last-in, first-out container."""\n\n    def __init__(self):\n'
NEW_TOKENS, COMPARED_TOKENS = 96, 32
SHOWN_PASSES = 2
UNMEASURED_PASSES = 4
"""The first of a run load what stays, and the kernels."""
INT4 = "as above, in int4"
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "one group at a time": {"gpu_groups": 1, "host_groups": 1, "residency": False},
    "all may stay in memory": {"residency": True},
    INT4: {"path": BUNDLED_INT4},
}
"""The demo is held against runs in which nothing is read beside the computing, in which nothing needs to be, and in
which the same model has fewer bytes."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One run: how its groups moved, bytes from the disk and seconds of its passes, and its tokens."""

    name: str
    moving_groups: int
    pass_bytes: int
    on_device: int
    passes: Samples
    token_ids: Sequence[int]


async def demo(options: argparse.Namespace) -> None:
    """Generate, with a window of four weight groups unless a setting says otherwise, draw the last passes, and compare.

    Raises OutputsDiffer when the same prompt has other tokens because its groups moved otherwise.
    """
    check_one_device(options.settings)
    # Without a GPU each group is copied all the same, so that the uploader can be watched.
    device = "cuda" if torch.cuda.is_available() else "cpu-copy"
    trace, settings = Trace(), {"device": device, **options.settings}
    async with Model.open(trace=trace, **settings) as model:
        Progress().clear()
        print(opening_lines(model))
        print(PROMPT, end="", flush=True)
        before, answer = model.statistics(), Answer()
        await stream_text(model, model.stream(PROMPT, max_new_tokens=NEW_TOKENS), answer)
        after, ended = model.statistics(), answer.came[-1]
        seconds = ended - answer.started
        print(closing_lines(before, after, seconds))
        window = sum(one.nbytes for one in model.runtime.plan.holdings if one.knob == "gpu_groups")
        print(f"window     {human_bytes(window)} for {human_bytes(model.runtime.catalog.needed_bytes)} of weights")
        shown_seconds = SHOWN_PASSES * seconds / (after.passes - before.passes)
        print(f"\n{'the last passes':{NAME_WIDTH}} {shown_seconds * 1000:.0f} ms from left to right")
        print(timeline(trace.spans, ACTORS, ended - shown_seconds, ended))
        print(f"{'':{NAME_WIDTH}} {LEGEND}", flush=True)
        runs = [shown("as above", model, answer)]
    for name, other in OTHERS.items():
        async with Model.open(**{"path": BUNDLED, **settings, **other}) as model:
            answer = Answer()
            await stream_text(model, model.stream(PROMPT, max_new_tokens=COMPARED_TOKENS), answer, shown=False)
            runs.append(shown(name, model, answer))
    print(f"\n{compared(runs)}")


def shown(name: str, model: Model, answer: Answer) -> Shown:
    """Describe a run that has ended."""
    seconds = [after - before for before, after in itertools.pairwise(answer.came)]
    statistics = model.statistics()
    samples = Samples(tuple(seconds[UNMEASURED_PASSES:]))
    peak, pass_bytes = statistics.device_groups_peak, model.runtime.moving_bytes
    return Shown(name, statistics.moving_groups, pass_bytes, peak, samples, answer.token_ids)


def compared(runs: Sequence[Shown]) -> str:
    """The runs beside each other, and what overlapping is worth. Raises OutputsDiffer."""
    ours, alone, *_ = runs
    same = [sum(itertools.accumulate(map(operator.eq, ours.token_ids, run.token_ids), operator.and_)) for run in runs]
    for run, count in zip(runs, same, strict=True):
        need, have = ours.token_ids[: len(run.token_ids)], run.token_ids[: len(ours.token_ids)]
        if count < len(need) and run.name != INT4:
            raise OutputsDiffer(f"demo, {run.name}: need the tokens {need} of the run above, have {have}")
    table = aligned(
        {
            ("weight groups", ""): [run.name for run in runs],
            ("moving", "in a pass"): [str(run.moving_groups) for run in runs],
            ("from the disk", "in a pass"): [human_bytes(run.pass_bytes) for run in runs],
            ("on the device", "at most"): [str(run.on_device) for run in runs],
            ("pass", "s"): [f"{run.passes.median:.4f} ± {run.passes.spread:.0%}" for run in runs],
            ("", "x as long"): [f"{run.passes.median / ours.passes.median:.2f}" for run in runs],
            ("the same", "tokens"): [f"{count} of {len(run.token_ids)}" for run, count in zip(runs, same, strict=True)],
        }
    )
    longer, noise = alone.passes.median / ours.passes.median - 1, alone.passes.spread + ours.passes.spread
    again = "" if longer > noise else "; run it again while the machine has nothing else to do"
    gain = f"a pass takes {longer:.1%} longer, {beside_noise(longer, noise)}{again}."
    still = nothing_moved({ours.name: ours.moving_groups}, "it does not tell what reading while computing is worth")
    return with_remarks(table, still or f"Without reading while it computes, {gain}")
