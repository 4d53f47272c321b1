"""Put a stage of your own into the line: it sees every weight group on its way to the device."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pipeline import Message, Model, Slot, Stage


class Checksum(Stage):
    """Remembers what each group adds up to on the first pass, and refuses a group that differs later."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], list[float]] = {}

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        sums = self.seen.setdefault((message.layer, message.group), [])
        sums.append(await asyncio.to_thread(add_up, self.catalog.tensors(message)))
        if sums[-1] != sums[0]:
            raise ValueError(f"the weights add up to {sums[-1]}, before to {sums[0]}")
        return message


def add_up(tensors: Mapping[str, Any]) -> float:
    return float(sum(tensor.double().sum().item() for tensor in tensors.values()))


async def main() -> None:
    checksum = Checksum()
    # Groups that stay in memory pass a stage once; residency=False lets all of them move in every pass.
    async with Model.open(insert={"pinned_stager": [checksum]}, residency=False) as model:
        await model.generate("def ", max_new_tokens=8)
        moving, passes = model.statistics().moving_groups, model.statistics().passes
    compared = sum(len(sums) - 1 for sums in checksum.seen.values())
    print(f"{moving} groups moved in each of {passes} passes, and were the same in {compared} comparisons")


asyncio.run(main())
