"""Print text while it is being made; stop at a string."""

import asyncio

from pipeline import Model

PROMPT = "import unittest\n\nclass "


async def main() -> None:
    model = await Model.open()
    try:
        finish_reason = None
        async for chunk in model.stream(PROMPT, temperature=0.8, top_p=0.95, seed=7, stop=["assert"]):
            print(chunk.text, end="", flush=True)
            finish_reason = chunk.finish_reason
        print(f"\n-- finished by {finish_reason}")
    finally:
        await model.aclose()


asyncio.run(main())
