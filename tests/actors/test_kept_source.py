"""A source slot that goes along is still in use while the bytes leave it, also when the line stops meanwhile."""

import asyncio

from support.small_lines import small_line

from pipeline.tools.simulation.loop import run_virtual


def test_a_slot_that_is_copied_from_when_the_line_stops_is_not_free_before_the_copy_has_ended() -> None:
    async def main() -> None:
        sim = small_line(layers=3, kv_ms=500, attn_ms=10, ffn_ms=10, transfer_ms=10)
        kv_host, kv_device = sim.wired.lines[1].budgets
        running = asyncio.create_task(sim.run())
        while kv_device.statistics().held == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert kv_host.statistics().held == kv_device.statistics().held == 0
        assert kv_host.statistics().cooling == kv_device.statistics().cooling > 0

    run_virtual(main())
