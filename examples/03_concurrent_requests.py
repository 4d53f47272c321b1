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

        # Samples of one prompt compute it once; urgent calls go first; a timeout ends a call and frees all it held.
        samples = await model.generate(PROMPTS[1], n=4, temperature=0.8, seed=1, max_new_tokens=8, priority=-1)
        print("-- samples:", [sample.text for sample in samples])
        try:
            async with asyncio.timeout(0.1):
                await model.generate(PROMPTS[2], max_new_tokens=1000, ignore_eos=True)
        except TimeoutError:
            print("-- the last call took too long, and is gone")


asyncio.run(main())
