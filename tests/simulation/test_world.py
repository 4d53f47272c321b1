"""The simulated disk, catalog and program."""

import asyncio

import pytest

from actors.core.budget import Budget
from actors.core.message import READY, Message
from actors.core.ports import Event
from pipeline.devices.sim import SimDevice, SimEvent
from pipeline.simulation.loop import run_virtual
from pipeline.simulation.world import SimCatalog, SimDisk, SimProgram

SIZES = {"attn": 100, "ffn": 400}


def now() -> float:
    return asyncio.get_running_loop().time()


def test_the_disk_serves_one_read_after_the_other_in_call_order() -> None:
    async def main() -> None:
        disk = SimDisk(SIZES, 100.0)
        ended: list[tuple[int, float]] = []

        async def read(layer: int, group: str) -> None:
            await disk.read_into(layer, group, None)
            ended.append((layer, now()))

        await asyncio.gather(read(0, "ffn"), read(1, "attn"), read(2, "attn"))
        assert ended == [(0, pytest.approx(4.0)), (1, pytest.approx(5.0)), (2, pytest.approx(6.0))]
        await asyncio.sleep(10)
        await read(3, "attn")
        assert ended[-1] == (3, pytest.approx(17.0)), "idle time is not saved up"

    run_virtual(main())


def test_an_endlessly_fast_disk_takes_no_time() -> None:
    async def main() -> None:
        disk = SimDisk(SIZES, float("inf"))
        await asyncio.gather(*(disk.read_into(layer, "ffn", None) for layer in range(5)))
        assert now() == 0.0

    run_virtual(main())


def test_the_catalog_has_one_kind_and_one_copy_per_group() -> None:
    catalog = SimCatalog(SIZES)
    assert [catalog.kind(layer, group) for layer in (0, 9) for group in SIZES] == ["attn", "ffn"] * 2
    for group, nbytes in SIZES.items():
        (copy,) = catalog.copies(3, group)
        assert (copy.source_offset, copy.target_offset, copy.length) == (0, 0, nbytes)


def test_the_program_computes_each_group_after_its_bytes_and_ends_with_the_last() -> None:
    async def main() -> None:
        device = SimDevice(h2d_bytes_per_second=1.0)
        program = SimProgram(device, 2, lambda layer, group: {"attn": 1.0, "ffn": 2.0}[group] + layer)
        slot = await Budget("device", {"attn": ["memory"]}, now).acquire("attn")

        def message(layer: int, group: str, event: Event) -> Message[object]:
            return Message(layer, group, 0, slot, event)

        await asyncio.sleep(1)
        pass_ = await program.begin()
        assert pass_.began == pytest.approx(1.0)
        await program.finish(pass_)
        assert now() == pytest.approx(1.0), "nothing was launched"
        first = program.step(pass_, message(0, "attn", SimEvent(0.0, 4.0)))  # type: ignore[arg-type]
        second = program.step(pass_, message(3, "ffn", READY))  # type: ignore[arg-type]
        await program.finish(pass_)
        assert (first.span, second.span) == (pytest.approx((4.0, 5.0)), pytest.approx((5.0, 10.0)))
        assert now() == pytest.approx(10.0)
        assert pass_.steps == [(0, "attn"), (3, "ffn")]
        again = await program.begin()
        assert program.passes == [pass_, again]
        assert again.steps == []

    run_virtual(main())


def test_a_group_that_never_arrived_fails_the_pass() -> None:
    async def main() -> None:
        computed: list[int] = []
        program = SimProgram(SimDevice(h2d_bytes_per_second=1.0), 1, lambda layer, _: computed.append(layer) or 1.0)
        error = OSError("disk")
        pass_ = await program.begin()
        program.step(pass_, Message(0, "attn", 0, None, SimEvent(0.0, 1.0, error)))  # type: ignore[arg-type]
        with pytest.raises(OSError, match="disk") as caught:
            await program.finish(pass_)
        assert caught.value is error
        assert computed == []

    run_virtual(main())
