"""Whatever a policy asks for: every group goes once, within its slots, and the next one can always be had."""

from collections.abc import Mapping, Sequence
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from support.prefetch_queues import open_queue, order_of
from support.scripted_policy import ScriptedPolicy
from support.small_lines import small_line

from actors.core.ports import Ask, Priority
from actors.core.prefetch import PrefetchQueue
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.tools.simulation.loop import run_virtual


def take_now(queue: PrefetchQueue) -> int | None:
    """The next position, if there is one that needs no waiting."""
    taking = queue.take()
    try:
        taking.send(None)
    except StopIteration as taken:
        position: int = taken.value
        return position
    taking.close()
    return None


async def drive(queue: PrefetchQueue, slots: Mapping[str, int], kinds: Sequence[str], random: Random) -> list[int]:
    """Two passes in which groups land, and links are looked after, in any order; returns what was sent."""
    taken: list[int] = []
    moving: list[int] = []
    landed: set[int] = set()
    computed = 0
    running = False
    while computed < 2 * len(kinds):
        held = [kinds[position % len(kinds)] for position in [*moving, *landed]]
        assert all(held.count(kind) <= slots[kind] for kind in slots), "rule 2"
        actions = ["take"]
        actions += ["land"] if moving else []
        actions += ["start"] if not running and computed in landed else []
        actions += ["end"] if running else []
        action = random.choice(actions)
        if action == "take":
            position = take_now(queue)
            if position is not None:
                taken.append(position)
                moving.append(position)
            else:
                assert moving or landed, "nothing moves, nothing has landed and nothing can be had: a deadlock"
                assert moving or computed in landed, "all that has landed waits for a group that cannot be had"
        elif action == "land":
            landed.add(moving.pop(random.randrange(len(moving))))
            queue.arrived()
        elif action == "start":
            queue.started(computed)
            running = True
        else:
            queue.ended(computed)
            landed.remove(computed)
            computed += 1
            running = False
    return taken


ASKS = st.lists(
    st.builds(
        Ask, st.sampled_from(("attn", "ffn")), st.integers(-1, 5), st.sampled_from((Priority.HIGH, Priority.MEDIUM))
    ),
    max_size=8,
)
SLOTS = st.one_of(
    st.just({"ffn": 1}),
    st.builds(lambda attn, ffn: {"attn": attn, "ffn": ffn}, st.integers(1, 6), st.integers(1, 6)),
)


@settings(max_examples=150, deadline=None)
@given(
    layers=st.integers(1, 4),
    slices=st.integers(0, 4),
    slots=SLOTS,
    links=st.integers(1, 3),
    warmup=ASKS,
    asks=st.lists(ASKS, min_size=1, max_size=4),
    seed=st.integers(0, 1 << 16),
)
def test_whatever_is_asked_for_every_group_goes_once_and_the_next_can_always_be_had(
    layers: int,
    slices: int,
    slots: dict[str, int],
    links: int,
    warmup: list[Ask],
    asks: list[list[Ask]],
    seed: int,
) -> None:
    policy = ScriptedPolicy(lambda half: asks[(2 * half.layer + (half.kind == "ffn")) % len(asks)], warmup)
    kinds = list(SlotKinds.by_order(order_of(layers, slices), len(slots)).of.values())

    async def main() -> None:
        queue = open_queue(policy, slots, layers, links, slices)
        for _ in range(2):
            taken = await drive(queue, slots, kinds, Random(seed))
            assert sorted(taken)[: 2 * len(kinds)] == list(range(2 * len(kinds)))
            assert len(set(taken)) == len(taken)
            queue.restart()

    run_virtual(main())


@settings(max_examples=100, deadline=None)
@given(
    layers=st.integers(1, 5),
    gpu_groups=st.integers(1, 12),
    host_groups=st.integers(1, 12),
    queue=st.integers(1, 4),
    disk_ms=st.sampled_from((0, 1, 150)),
    micro_batches=st.integers(1, 3),
    waits=st.sampled_from(("blocking", "event", "chained")),
    asks=st.lists(ASKS, min_size=1, max_size=4),
)
def test_whatever_is_asked_for_a_line_computes_every_group_in_order(
    layers: int,
    gpu_groups: int,
    host_groups: int,
    queue: int,
    disk_ms: float,
    micro_batches: int,
    waits: str,
    asks: list[list[Ask]],
) -> None:
    policy = ScriptedPolicy(
        lambda half: asks[(2 * half.layer + (half.kind == "ffn")) % len(asks)],
        asks[0],
        waits=waits,  # type: ignore[arg-type]
        fallback_seconds=0.1,
        micro_batches=micro_batches,
    )

    async def main() -> None:
        sim = small_line(
            layers=layers,
            gpu_groups=gpu_groups,
            host_groups=host_groups,
            queue=queue,
            disk_ms=disk_ms,
            check_ms=2,
            policy=policy,
        )
        for _ in range(2):
            sim.program.passes.clear()
            await sim.line.run()
            assert [one.steps for one in sim.program.passes] == [list(sim.program.order)] * 2
            assert all(statistics.peak <= statistics.capacity for statistics in sim.line.statistics().budgets.values())

    run_virtual(main())
