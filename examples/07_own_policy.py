"""Write a prefetch policy of your own, and see on one page what it makes of the line."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from pipeline import Model
from pipeline.policies import Policy, Want

PROMPT = "class Queue:\n"
OWN = Policy(
    name="own ffn first",
    at_attn=(Want("ffn", 0, 0), Want("attn", 1, 1)),  # this layer's ffn, then the next layer's attn
    at_ffn=(Want("attn", 1, None),),  # and as many attns ahead as the depth says
    depth=2,
)


async def main() -> None:
    texts = []
    for policy in (OWN, replace(OWN, name="own ffn first, chained", waits="chained")):
        async with Model.open(policy=policy, gpu_groups=6) as model:
            page = Path(tempfile.mkdtemp()) / "report.html"
            async with model.report(page):
                texts.append((await model.generate(PROMPT, max_new_tokens=16)).text)
            print(f"{policy.name}: {page.stat().st_size // 1000} kB in {page}")
    print("-- the same text in both" if len(set(texts)) == 1 else f"-- a bug: {texts}")


asyncio.run(main())
