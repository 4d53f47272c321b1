"""Several requests at once: they are served in the order in which they came, and one may be cancelled."""

import asyncio

from pipeline import Model

PROMPTS = ["def add(a, b):\n", "class Queue:\n", "try:\n", "with open(path) as file:\n"]


async def main() -> None:
    async with Model.open() as model:
        requests = [asyncio.create_task(model.generate(prompt, max_new_tokens=16)) for prompt in PROMPTS]
        requests[2].cancel()
        for prompt, result in zip(PROMPTS, await asyncio.gather(*requests, return_exceptions=True), strict=True):
            text = "cancelled" if isinstance(result, asyncio.CancelledError) else result.text
            print(f"{prompt!r}: {text!r}")
        print(f"-- {model.statistics().passes} passes")


asyncio.run(main())
