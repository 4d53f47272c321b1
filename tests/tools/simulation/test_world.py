"""The simulated disk, catalog and program."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from actors.core.event import Event
from actors.core.message import READY, Message
from pipeline.devices.sim import SimDevice, SimEvent
from pipeline.engine.policies import POLICIES, Policy
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.bench.steady_timings import SteadyTimings
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.simulation.world import SimCatalog, SimDisk, SimProgram
from pipeline.tools.trace.passes import group_times, work_by_actor
from pipeline.tools.trace.recording import KV_IN, KV_OUT

LINK = LayerTimings(layers=4, attn=1.0, ffn=2.0, attn_io=1.0, ffn_io=4.0)
HOPS = replace(LINK, attn_disk=3.0, ffn_disk=5.0)
CHAINED = POLICIES["backpressure"]


def now() -> float:
    return asyncio.get_running_loop().time()


def program(
    timings: LayerTimings = LINK,
    policy: Policy = CHAINED,
    work: Callable[[int, str], float] | None = None,
) -> SimProgram:
    return SimProgram(SimDevice(h2d_bytes_per_second=1.0), timings, policy, work=work)


def message(layer: int, group: str, event: Event = READY, seq: int = 0) -> Message[Any]:
    return Message(layer, group, seq, None, event)


def test_the_disk_serves_one_read_after_the_other_in_call_order() -> None:
    async def main() -> None:
        disk = SimDisk(LINK)
        ended: list[tuple[int, float]] = []

        async def read(layer: int, group: str) -> None:
            await disk.read_into((layer, group), None)
            ended.append((layer, now()))

        await asyncio.gather(read(0, "ffn"), read(1, "attn"), read(2, "attn"))
        assert ended == [(0, pytest.approx(4.0)), (1, pytest.approx(5.0)), (2, pytest.approx(6.0))]
        await asyncio.sleep(10)
        await read(3, "attn")
        assert ended[-1] == (3, pytest.approx(17.0)), "idle time is not saved up"

    run_virtual(main())


def test_an_endlessly_fast_disk_takes_no_time() -> None:
    async def main() -> None:
        disk = SimDisk(replace(LINK, ffn_io=0.0))
        await asyncio.gather(*(disk.read_into((layer, "ffn"), None) for layer in range(4)))
        assert now() == 0.0

    run_virtual(main())


def test_where_the_disk_is_a_hop_of_its_own_it_takes_its_own_time() -> None:
    async def main() -> None:
        await SimDisk(HOPS).read_into((2, "ffn"), None)
        assert now() == pytest.approx(5.0)

    run_virtual(main())


def test_the_catalog_has_two_kinds_and_one_copy_per_group() -> None:
    catalog = SimCatalog(HOPS, SlotKinds.by_order(HOPS.order))
    assert [catalog.kind(key) for key in HOPS.order] == ["attn", "ffn"] * 4
    for group, seconds in {"attn": 1, "ffn": 4}.items():
        (copy,) = catalog.copies((3, group))
        assert (copy.source_offset, copy.target_offset, copy.length) == (0, 0, seconds * 1_000_000_000)


def test_a_single_slot_holds_either_kind_and_one_link_has_nothing_left_to_copy() -> None:
    catalog = SimCatalog(LINK, SlotKinds.by_order(LINK.order, 1))
    assert {catalog.kind(key) for key in LINK.order} == {"ffn"}
    assert [copy.length for copy in catalog.copies((0, "ffn"))] == [0]


def test_jitter_differs_from_pass_to_pass_and_repeats_itself() -> None:
    jittered, kinds = replace(HOPS, jitter=0.2, seed=7), SlotKinds.by_order(HOPS.order)

    def lengths(catalog: SimCatalog) -> list[int]:
        return [catalog.copies((layer, "ffn"))[0].length for _ in range(3) for layer in range(2)]

    drawn = lengths(SimCatalog(jittered, kinds))
    assert len(set(drawn)) == 6
    assert drawn == lengths(SimCatalog(jittered, kinds))
    assert drawn != lengths(SimCatalog(replace(jittered, seed=8), kinds))


def test_the_program_computes_each_group_after_its_bytes_and_ends_with_the_last() -> None:
    async def main() -> None:
        runs = program(work=lambda key: {"attn": 1.0, "ffn": 2.0}[key[1]] + key[0])
        await asyncio.sleep(1)
        pass_ = await runs.begin()
        assert pass_.began == pytest.approx(1.0)
        await runs.finish(pass_)
        assert now() == pytest.approx(1.0), "nothing was launched"
        (first,) = runs.step(pass_, message(0, "attn", SimEvent(0.0, 4.0)))
        (second,) = runs.step(pass_, message(3, "ffn"))
        await runs.finish(pass_)
        assert (first.span, second.span) == (pytest.approx((4.0, 5.0)), pytest.approx((5.0, 10.0)))
        assert now() == pytest.approx(10.0)
        assert pass_.steps == [(0, "attn"), (3, "ffn")]
        again = await runs.begin()
        assert runs.passes == [pass_, again]
        assert (again.index, again.steps) == (1, [])

    run_virtual(main())


def test_a_group_that_never_arrived_fails_the_pass() -> None:
    async def main() -> None:
        computed: list[int] = []
        runs = program(work=lambda key: computed.append(key[0]) or 1.0)
        error = OSError("disk")
        pass_ = await runs.begin()
        runs.step(pass_, message(0, "attn", SimEvent(0.0, 1.0, error)))
        runs.step(pass_, message(0, "ffn"))
        with pytest.raises(OSError, match="disk") as caught:
            await runs.finish(pass_)
        assert caught.value is error
        assert computed == []

    run_virtual(main())


def test_the_ffn_of_one_micro_batch_runs_beside_the_attention_of_the_next() -> None:
    """Each takes half of the half-layer's time; the next layer's attention needs this layer's ffn, part by part."""

    async def main() -> None:
        runs = program(policy=POLICIES["stage3"])
        pass_ = await runs.begin()
        spans = [list(runs.step(pass_, message(*key))) for key in LINK.order[:3]]
        await runs.finish(pass_)
        assert [[event.span for event in events] for events in spans] == [
            [(0.0, 0.5), (0.5, 1.0)],
            [(0.5, 1.5), (1.5, 2.5)],
            [(1.5, 2.0), (2.5, 3.0)],
        ]

    run_virtual(main())


def test_checking_in_waits_for_the_device_then_the_group_then_its_own_time() -> None:
    async def main() -> None:
        runs = program(replace(LINK, check_seconds=0.25))
        pass_ = await runs.begin()
        await runs.check_in(pass_, message(0, "attn", SimEvent(0.0, 2.0)))
        assert now() == pytest.approx(2.25)
        runs.step(pass_, message(0, "attn"))
        await runs.check_in(pass_, message(0, "ffn"))
        assert now() == pytest.approx(3.5)
        await runs.check_in(pass_, message(1, "attn", SimEvent(0.0, 4.0, OSError("disk"))))
        assert now() == pytest.approx(4.25), "a failed group is the pass's to report"

    run_virtual(main())


@pytest.mark.parametrize(
    ("policy", "starts"),
    [
        # Layer 0 stays. The blocks of layer 1 come while it computes, those of the others while there is a slot;
        # or each when the layer before has ended.
        ("backpressure", [0.0, 0.5, 1.0]),
        ("history", [3.0, 6.5, 10.0]),
    ],
)
def test_kv_blocks_move_beside_the_computation(policy: str, starts: list[float]) -> None:
    timings = LayerTimings(layers=4, attn=1.0, ffn=2.0, attn_io=1e-6, ffn_io=1e-6, kv_seconds=0.5)
    spans = [span for span in simulate(timings, POLICIES[policy]).trace.spans if span.what == "work"]
    into = [span for span in spans if span.actor == KV_IN]
    assert [(span.layer, span.group) for span in into] == [(layer, "kv") for layer in (1, 2, 3)]
    assert [span.started for span in into] == pytest.approx(starts, abs=1e-3)
    attns = {span.layer: span for span in spans if span.actor == "compute_scheduler" and span.group == "attn"}
    assert all(attns[span.layer].started >= span.ended for span in into)
    out = [span.started for span in spans if span.actor == KV_OUT]
    assert out == pytest.approx([attns[layer].ended for layer in (1, 2, 3)]), "new rows leave with the attention's end"


def test_where_computing_binds_no_slice_of_the_head_is_waited_for() -> None:
    """Two small slots and a large one are free while the last ffn is computed: room for three slices."""
    order = (*HOPS.order, (4, "head.0"), (4, "head.1"), (4, "head.2"))
    reads = {key: 1.0 if key[1] in ("attn", "head.0", "head.2") else 4.0 for key in order}
    computes = {key: 0.05 if key[0] == 4 else 2 * seconds for key, seconds in reads.items()}
    timings = SteadyTimings(order=order, one_link=True, begin=0.0, reads=reads, uploads=reads, computes=computes)
    run = simulate(timings, CHAINED, passes=4, gpu_groups=4, queue=4)
    groups = group_times(work_by_actor(run.trace.spans), order)
    for slice_ in range(2 * len(order) + len(HOPS.order), 3 * len(order)):
        assert groups[slice_].started == pytest.approx(groups[slice_ - 1].ended), order[slice_ % len(order)]
