"""Write a prefetch policy of your own, hold it against the default, and see on one page what it makes of the line."""

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pipeline import POLICIES, Model, Policy, Want

OWN = Policy(
    name="own",
    at_attn=(Want("ffn", 0, 0), Want("attn", 1, 1)),  # this layer's ffn, then the next layer's attn
    at_ffn=(Want("attn", 1, None),),  # and as many attns ahead as the depth says
    depth=2,
)


async def main() -> None:
    texts, folder = set(), Path(tempfile.mkdtemp())
    for policy in (OWN, replace(OWN, name="own, chained", waits="chained"), POLICIES["backpressure"]):
        # A policy says what moves when; residency=False keeps this small model from staying in memory.
        async with Model.open(policy=policy, gpu_groups=6, residency=False) as model:
            async with model.report(page := folder / f"{policy.name}.html"):
                runs = []
                for _ in range(3):
                    started = time.perf_counter()
                    texts.add((await model.generate("class Queue:\n", max_new_tokens=8)).text)
                    runs.append((time.perf_counter() - started) / 8)
            told = f"{min(runs):.3f} to {max(runs):.3f} s a pass, {model.statistics().moving_groups} groups moving"
            print(f"{policy.name:13} {told}: {page}")
    if len(texts) > 1:
        raise SystemExit(f"-- a bug: policies change what moves when, never the text: {texts}")
    print("-- the same text from all")


asyncio.run(main())
