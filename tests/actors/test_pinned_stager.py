"""The stager looks at what has landed: in order, read again once when it differs, and an error when it still does."""

import asyncio

import pytest
from support.small_lines import small_line

from actors.core.errors import ActorFailed
from actors.core.trace import Trace
from pipeline.simulation.loop import run_virtual

LAYERS = 3
ACTORS = ("disk_reader", "pinned_stager")
ORDER = [(layer, group) for layer in range(LAYERS) for group in ("attn", "ffn")]


class CountingDisk:
    def __init__(self) -> None:
        self.reads: list[tuple[int, str]] = []

    async def read_into(self, layer: int, group: str, buffer: object) -> None:
        await asyncio.sleep(0.01)
        self.reads.append((layer, group))


class Scripted:
    """Takes a while, and finds one group changed so many times."""

    def __init__(self, faults: int, seconds: float = 0.002) -> None:
        self.compared: list[tuple[int, str]] = []
        self._faults = faults
        self._seconds = seconds

    async def compare(self, layer: int, group: str, buffer: object) -> Exception | None:
        await asyncio.sleep(self._seconds)
        self.compared.append((layer, group))
        if (layer, group) == (1, "ffn") and self._faults:
            self._faults -= 1
            return ValueError("bytes 7 to 9 have changed")
        return None


def test_every_group_is_looked_at_in_order_and_beside_the_reads_of_those_behind_it() -> None:
    async def main() -> None:
        trace, looks = Trace(), Scripted(0)
        sim = small_line(layers=LAYERS, passes=2, source=CountingDisk(), checksums=looks, trace=trace)
        await sim.line.run()
        assert looks.compared == ORDER * 2
        assert [len(one.steps) for one in sim.program.passes] == [6, 6]
        work = {actor: [s for s in trace.spans if (s.actor, s.what) == (actor, "work")] for actor in ACTORS}
        assert sum(s.ended - s.started for s in work["pinned_stager"]) == pytest.approx(12 * 0.002)
        assert any(
            look.started < read.ended and read.started < look.ended
            for look in work["pinned_stager"]
            for read in work["disk_reader"]
        )

    run_virtual(main())


def test_a_group_that_differs_once_is_read_again_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        disk, looks = CountingDisk(), Scripted(1)
        sim = small_line(layers=LAYERS, passes=1, source=disk, checksums=looks)
        await sim.line.run()
        assert sorted(disk.reads) == sorted([*ORDER, (1, "ffn")])
        assert looks.compared == [*ORDER[:4], (1, "ffn"), *ORDER[4:]]
        assert len(sim.program.passes[0].steps) == 6

    run_virtual(main())
    assert "layer 1 ffn differs from its first read, reading once more: bytes 7 to 9 have changed" in caplog.text


def test_a_group_that_still_differs_stops_the_line_by_name_and_the_line_runs_anew() -> None:
    async def main() -> None:
        sim = small_line(layers=LAYERS, passes=1, source=CountingDisk(), checksums=Scripted(2))
        with pytest.raises(ActorFailed, match=r"pinned_stager failed at layer 1 group 'ffn': ValueError: bytes 7") as e:
            await sim.line.run()
        assert (e.value.actor, e.value.layer, e.value.group) == ("pinned_stager", 1, "ffn")
        assert [budget.statistics().held for budget in sim.line.budgets] == [0, 0]
        await sim.line.run()
        assert len(sim.program.passes[-1].steps) == 6

    run_virtual(main())


def test_nothing_is_computed_from_bytes_that_differ() -> None:
    async def main() -> None:
        computed: list[tuple[int, str]] = []
        sim = small_line(
            layers=LAYERS,
            passes=1,
            source=CountingDisk(),
            checksums=Scripted(2),
            work=lambda layer, group: computed.append((layer, group)) or 0.001,  # type: ignore[func-returns-value]
        )
        with pytest.raises(ActorFailed):
            await sim.line.run()
        assert (1, "ffn") not in computed

    run_virtual(main())
