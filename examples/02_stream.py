"""Print text while it is being made; stop at a string."""

import asyncio

from pipeline import Model


async def main() -> None:
    model = await Model.open()
    try:
        arguments = {"max_new_tokens": 64, "temperature": 0.8, "top_p": 0.95, "seed": 7, "stop": ["assert"]}
        async for chunk in model.stream("import unittest\n\nclass ", **arguments):
            print(chunk.text, end="", flush=True)
        print(f"\n-- finished by {chunk.finish_reason}")
    finally:
        await model.aclose()


asyncio.run(main())
