"""`penstock demo`: the bundled model under a budget smaller than itself, the five actors shown at work."""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from actors.core.trace import Trace
from pipeline.api import Model
from pipeline.engine.actor_names import ACTORS
from pipeline.system.sizes import human_bytes
from pipeline.system.table import aligned
from pipeline.tools.bench.candidates import Samples
from pipeline.tools.bench.policy_runs import OutputsDiffer
from pipeline.tools.commands.answer import Answer
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
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "one group at a time": {"gpu_groups": 1, "host_groups": 1, "residency": False},
    "all may stay in memory": {"residency": True},
}
"""The demo is held against runs in which nothing is read beside the computing, and in which nothing needs to be."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One run: how its groups moved, seconds of its passes, and its tokens."""

    name: str
    moving_groups: int
    on_device: int
    passes: Samples
    token_ids: Sequence[int]


async def demo(options: argparse.Namespace) -> None:
    """Generate, with a window of four weight groups unless a setting says otherwise, draw the last passes, and compare.

    Raises OutputsDiffer when the same prompt has other tokens because its groups moved otherwise.
    """
    # Without a GPU each group is copied all the same, so that the uploader can be watched.
    device = "cuda" if torch.cuda.is_available() else "cpu-copy"
    trace, settings = Trace(), {"device": device, **options.settings}
    async with Model.open(trace=trace, **settings) as model:
        Progress().clear()
        print(opening_lines(model))
        print(PROMPT, end="", flush=True)
        before, answer = model.statistics(), Answer()
        await stream_text(model, PROMPT, {"max_new_tokens": NEW_TOKENS}, answer)
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
        async with Model.open(**{**settings, **other}) as model:
            answer = Answer()
            await stream_text(model, PROMPT, {"max_new_tokens": COMPARED_TOKENS}, answer, shown=False)
            runs.append(shown(name, model, answer))
    print(f"\n{compared(runs)}")


def shown(name: str, model: Model, answer: Answer) -> Shown:
    """Describe a run that has ended."""
    seconds = [after - before for before, after in itertools.pairwise(answer.came)]
    statistics = model.statistics()
    samples = Samples(tuple(seconds[UNMEASURED_PASSES:]))
    return Shown(name, statistics.moving_groups, statistics.device_groups_peak, samples, answer.token_ids)


def compared(runs: Sequence[Shown]) -> str:
    """The runs beside each other, and what overlapping is worth. Raises OutputsDiffer."""
    ours, alone, *_ = runs
    for run in runs:
        need, have = ours.token_ids[: len(run.token_ids)], run.token_ids[: len(ours.token_ids)]
        if need != have:
            raise OutputsDiffer(f"demo, {run.name}: need the tokens {need} of the run above, have {have}")
    table = aligned(
        {
            ("weight groups", ""): [run.name for run in runs],
            ("moving", "in a pass"): [str(run.moving_groups) for run in runs],
            ("on the device", "at most"): [str(run.on_device) for run in runs],
            ("pass", "s"): [f"{run.passes.median:.4f} ± {run.passes.spread:.0%}" for run in runs],
            ("", "x as long"): [f"{run.passes.median / ours.passes.median:.2f}" for run in runs],
            ("the same", "tokens"): [str(len(run.token_ids)) for run in runs],
        }
    )
    longer, noise = alone.passes.median / ours.passes.median - 1, alone.passes.spread + ours.passes.spread
    again = "" if longer > noise else "; run it again while the machine has nothing else to do"
    gain = f"a pass takes {longer:.1%} longer, {beside_noise(longer, noise)}{again}."
    still = nothing_moved({ours.name: ours.moving_groups}, "it does not tell what reading while computing is worth")
    return with_remarks(table, still or f"Without reading while it computes, {gain}")
