"""A pass goes from section to section in compute order, whoever waits for it first."""

import asyncio

from actors.core.message import GroupKey
from pipeline.engine.relay import Relay
from pipeline.tools.simulation.loop import run_virtual

ORDER: list[GroupKey] = [(layer, part) for layer in range(4) for part in ("attn", "ffn")]
OWNERS = {key: key[0] % 2 for key in ORDER}


def test_two_sections_compute_in_turn() -> None:
    computed: list[tuple[int, GroupKey]] = []

    async def section(number: int, relay: Relay, passes: int, seconds: float) -> None:
        for _ in range(passes):
            for key in (one for one in ORDER if OWNERS[one] == number):
                await relay.reached(key)
                await asyncio.sleep(seconds)
                computed.append((number, key))
                relay.left(key)

    async def main() -> None:
        relay = Relay(ORDER, OWNERS)
        async with asyncio.TaskGroup() as group:
            group.create_task(section(1, relay, 3, seconds=0))
            group.create_task(section(0, relay, 3, seconds=1))
            for begun in range(3):
                await asyncio.sleep(10)
                assert len(computed) == begun * len(ORDER)  # none begins of itself
                relay.begin()

    run_virtual(main())
    assert computed == [(OWNERS[key], key) for key in ORDER] * 3


def test_a_pass_that_was_forgotten_reaches_nobody() -> None:
    async def main() -> None:
        relay = Relay(ORDER, OWNERS)
        relay.begin()
        relay.left((0, "attn"))
        relay.left((0, "ffn"))
        await asyncio.wait_for(relay.reached((1, "attn")), 1)
        relay.fail()
        waiting = asyncio.create_task(relay.reached((1, "attn")))
        await asyncio.sleep(1)
        assert not waiting.done()
        waiting.cancel()

    run_virtual(main())
