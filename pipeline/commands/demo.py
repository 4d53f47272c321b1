"""`penstock demo`: the bundled model under a budget smaller than itself, the five actors shown at work."""

import argparse
import time

import torch

from actors.core.trace import Trace
from pipeline.api import Model
from pipeline.commands.answer import Answer
from pipeline.commands.options import model_settings
from pipeline.commands.run_lines import closing_lines, opening_lines
from pipeline.commands.run_prompt import stream_text
from pipeline.commands.timeline import LEGEND, NAME_WIDTH, timeline
from pipeline.wiring import ACTORS

PROMPT = 'class Stack:\n    """A last-in, first-out container."""\n\n    def __init__(self):\n'
NEW_TOKENS = 96
SHOWN_PASSES = 2


async def demo(options: argparse.Namespace) -> None:
    """Generate, with a window of four weight groups unless a setting says otherwise, then draw the last passes."""
    # Without a GPU each group is copied all the same, so that the uploader can be watched.
    device = "cuda" if torch.cuda.is_available() else "cpu-copy"
    trace, settings = Trace(), {"device": device, **model_settings(options)}
    async with Model.open(trace=trace, **settings) as model:
        print(opening_lines(model))
        print(PROMPT, end="", flush=True)
        before, started = model.statistics(), time.perf_counter()
        await stream_text(model, PROMPT, {"max_new_tokens": NEW_TOKENS}, Answer())
        after, ended = model.statistics(), time.perf_counter()
        print(closing_lines(before, after, ended - started))
        shown_seconds = SHOWN_PASSES * (ended - started) / (after.passes - before.passes)
        print(f"\n{'the last passes':{NAME_WIDTH}} {shown_seconds * 1000:.0f} ms from left to right")
        print(timeline(trace.spans, ACTORS, ended - shown_seconds, ended))
        print(f"{'':{NAME_WIDTH}} {LEGEND}")
