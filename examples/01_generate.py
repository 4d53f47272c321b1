"""Continue a prompt. Without a path, `Model.open` opens the bundled model."""

import asyncio

from pipeline import Model


async def main() -> None:
    async with Model.open() as model:
        output = await model.generate("def binary_search(items, wanted):\n", max_new_tokens=48)
        print(output.text)
        print(f"-- {len(output.token_ids)} tokens, finished by {output.finish_reason}")


asyncio.run(main())
