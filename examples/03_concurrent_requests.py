"""32 requests at once: they share passes, so all of them take hardly more passes than the longest one alone."""

import asyncio

from pipeline import Model

PROMPTS = ["def add(a, b):\n", "class Queue:\n", "try:\n", "with open(path) as file:\n"] * 8


async def main() -> None:
    async with Model.open() as model:
        outputs = await asyncio.gather(*(model.generate(prompt, max_new_tokens=16) for prompt in PROMPTS))
        for prompt, output in zip(PROMPTS[:4], outputs, strict=False):
            print(f"{prompt!r}: {output.text!r}")
        statistics = model.statistics()
        print(f"-- {len(outputs)} requests, {statistics.tokens} tokens in {statistics.passes} passes")

        # Samples share the KV blocks of their prompt, 16 tokens each, and so compute them once.
        samples = await model.generate("".join(PROMPTS), n=4, temperature=0.8, seed=1, max_new_tokens=8)
        shared = model.statistics().prefixes.hit_tokens
        print(f"-- samples, {shared} tokens of whose prompts were not computed again:", [one.text for one in samples])

        # A timeout ends a call, and within a pass frees all that it held.
        try:
            async with asyncio.timeout(0.1):
                await model.generate(PROMPTS[2], max_new_tokens=1000, ignore_eos=True)
        except TimeoutError:
            await model.generate(PROMPTS[3], max_new_tokens=1)
            statistics = model.statistics()
            cancelled, held = statistics.requests.cancelled, statistics.kv_blocks.used
            print(f"-- {cancelled} call took too long; {held} KV blocks are held after the next one")


asyncio.run(main())
