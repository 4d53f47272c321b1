"""Put a stage of your own into the line: it sees every weight group on its way to the device."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pipeline import Message, Model, Slot, Stage


class Checksum(Stage):
    """Remembers what each group adds up to on the first pass, and refuses a group that differs later."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], float] = {}

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        total = await asyncio.to_thread(add_up, self.catalog.tensors(message))
        before = self.seen.setdefault((message.layer, message.group), total)
        if before != total:
            raise ValueError(f"the weights add up to {total}, before to {before}")
        return message


def add_up(tensors: Mapping[str, Any]) -> float:
    return sum(tensor.double().sum().item() for tensor in tensors.values())


async def main() -> None:
    checksum = Checksum()
    async with Model.open(insert={"pinned_stager": [checksum]}) as model:
        await model.generate("def ", max_new_tokens=8)
        print(f"{len(checksum.seen)} groups were the same in all {model.statistics().passes} passes")


asyncio.run(main())
