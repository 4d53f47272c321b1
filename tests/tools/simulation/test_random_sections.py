"""Random sections, two hundred where everything is tested: none hangs, and each keeps its budgets and the order."""

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import pytest
from support.cases import EVERYTHING

from actors.core.message import GroupKey
from actors.core.trace import Span
from pipeline.engine.dealing import Share, deal, hops, pass_seconds
from pipeline.engine.residency import Residency
from pipeline.tools.simulation.sim_passes import SectionRates
from pipeline.tools.simulation.sim_sections import SimulatedSections, simulate_sections
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

BLOCKS, BLOCK = (10 if EVERYTHING else 2), 20
ROUNDING_SECONDS = 1e-8


@dataclass(frozen=True, kw_only=True)
class Setting:
    timings: LayerTimings
    owners: tuple[int, ...]
    rates: tuple[SectionRates, ...]
    residency: Residency
    hop_seconds: float
    shared_disk: bool
    in_flight: int
    micro_batches: int
    passes: int
    gpu_groups: int
    host_groups: int
    queue: int

    def run(self) -> SimulatedSections:
        line = {name: getattr(self, name) for name in ("rates", "residency", "hop_seconds", "shared_disk", "in_flight")}
        slots = {name: getattr(self, name) for name in ("gpu_groups", "host_groups", "queue")}
        counts = {name: getattr(self, name) for name in ("micro_batches", "passes")}
        return simulate_sections(self.timings, self.owners, **line, **slots, **counts)


def random_setting(seed: int) -> Setting:
    """Sections from 1 to 8, of layers that are dealt, contiguous, or anyhow; groups that stay are drawn, too."""
    random = Random(seed)
    seconds = [random.uniform(0.01, 0.2) for _ in range(6)]
    sections = random.randint(1, 8)
    layers = sections + round(random.expovariate(1 / 8))
    disk = random.choice([0, 1])
    timings = LayerTimings(
        layers=layers,
        attn=seconds[0],
        ffn=seconds[1],
        attn_io=seconds[2],
        ffn_io=seconds[3],
        attn_disk=seconds[4] * disk,
        ffn_disk=seconds[5] * disk,
        kv_seconds=random.choice([0, 0, 0.05]),
        jitter=random.choice([0, 0, 0.3, 1.0]),
        seed=seed,
    )
    shares = [Share(random.randint(0, 4), random.uniform(0.5, 2), 2) for _ in range(sections)]
    anyhow = [*range(sections), *(random.randrange(sections) for _ in range(layers - sections))]
    random.shuffle(anyhow)
    owners = random.choice(
        [
            deal([2] * layers + [0], shares, random.choice([0.0, 0.5, 5.0]))[:-1],
            tuple(layer * sections // layers for layer in range(layers)),
            tuple(anyhow),
        ]
    )
    place = "device" if disk else "host"
    stays = tuple(key for key in timings.order if random.random() < random.choice([0, 0.3, 0.9]))
    return Setting(
        timings=timings,
        owners=owners,
        rates=tuple(
            SectionRates(disk=random.choice([1, 0.3]), link=random.choice([1, 0.5]), compute=random.choice([1, 2]))
            for _ in range(sections)
        ),
        residency=Residency({place: random.choice([(), stays])}),
        hop_seconds=random.choice([0.0, 1e-3, 0.5]),
        shared_disk=random.choice([False, True]),
        in_flight=random.choice([1, 1, 2, sections]),
        micro_batches=random.choice([1, 1, 2, 3]),
        passes=random.choice([1, 2, 5]),
        gpu_groups=random.randint(1, 8),
        host_groups=random.randint(1, 8),
        queue=random.randint(1, 4),
    )


def work_of(run: SimulatedSections, section: int, actor: str) -> list[Span]:
    return [span for span in run.traces[section].spans if span.actor == actor and span.what == "work"]


def check_order(run: SimulatedSections, setting: Setting) -> None:
    """Each pass computes every group once, each part of it behind the group before, and behind a hop where it goes
    to another section; no pass begins before the pass that many before it has ended."""
    orders: defaultdict[int, list[GroupKey]] = defaultdict(list)
    for key in setting.timings.order:
        orders[setting.owners[key[0]]].append(key)
    computed: dict[tuple[int, GroupKey, int], Span] = {}
    for section, order in orders.items():
        for part in range(setting.micro_batches):
            spans = [span for span in work_of(run, section, COMPUTE) if span.part == part]
            del spans[len(order) * setting.passes :]  # of passes that the end of the run has cut off
            assert [span.key for span in spans] == order * setting.passes
            for index, span in enumerate(spans):
                computed[index // len(order), span.key, part] = span
    for pass_ in range(setting.passes):
        for part in range(setting.micro_batches):
            for before, after in pairwise(setting.timings.order):
                hop = setting.hop_seconds * (setting.owners[before[0]] != setting.owners[after[0]])
                ready = computed[pass_, before, part].ended + hop
                assert ready <= computed[pass_, after, part].started + ROUNDING_SECONDS
    for index, began in enumerate(run.began[setting.in_flight :]):
        assert run.ended[index] <= began
    assert len(run.ended) == setting.passes


def check_budgets(run: SimulatedSections, setting: Setting) -> None:
    """No section has more slots than its own, by the budgets' own count; and each holds one group at a time."""
    one_link = setting.timings.one_link
    capacities = {"slots host": setting.gpu_groups if one_link else setting.host_groups}
    if not one_link:
        capacities["slots device"] = setting.gpu_groups
    for section, trace in enumerate(run.traces):
        for count in trace.counts:
            assert count.counter not in capacities or count.value <= capacities[count.counter]
        fills = work_of(run, section, DISK if one_link else LINK)
        used = {span.seq: span for span in work_of(run, section, COMPUTE)}  # the last part stays
        by_slot: defaultdict[int, list[Span]] = defaultdict(list)
        for fill in fills:
            by_slot[fill.slot].append(fill)
            if fill.seq in used:  # others are for passes that the end of the run has cut off
                assert fill.ended <= used[fill.seq].started + ROUNDING_SECONDS
        for uses in by_slot.values():
            for before, after in pairwise(uses):
                assert before.seq in used
                assert used[before.seq].ended <= after.started + ROUNDING_SECONDS


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_deadlock_budgets_are_kept_and_passes_go_from_section_to_section(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        setting = random_setting(seed)
        run = setting.run()
        check_order(run, setting)
        check_budgets(run, setting)


def test_passes_take_what_the_closed_form_says() -> None:
    """Rates by section, and slots for two layers at least. Where links take up to a fifth longer than hops and
    computing, the waits of both add up a little: that is left out."""
    random = Random(23)
    for _ in range(60 if EVERYTHING else 6):
        sections = random.randint(1, 12)
        layers, groups = random.randint(2 * sections, 48), random.choice([4, 6, 10])
        seconds = [random.uniform(0.01, 0.1) for _ in range(4)]
        computing = random.choice([0.1, 0.5, 2.0]) / sections
        timings = LayerTimings(
            layers=layers,
            attn=seconds[0] * computing,
            ffn=seconds[1] * computing,
            attn_io=seconds[2],
            ffn_io=seconds[3],
        )
        rates, hop_seconds = [random.choice([0.5, 1, 2]) for _ in range(sections)], random.choice([0, 1e-4, 5e-3])
        layer = round((timings.attn_io + timings.ffn_io) * 1e9)
        shares = [Share(0, rate * 1e9, layer * groups // 2) for rate in rates]
        sizes, computes = [layer] * layers + [0], layers * (timings.attn + timings.ffn)
        contiguous = tuple(one * sections // layers for one in range(layers))
        for owners in (deal(sizes, shares, hop_seconds)[:-1], contiguous):
            dealt = (*owners, owners[-1])
            expected = pass_seconds(sizes, dealt, shares, hop_seconds, computes)
            way = hops(dealt) * hop_seconds + computes
            if 0.8 * expected < way < expected:
                continue
            run = simulate_sections(
                timings,
                owners,
                rates=[SectionRates(disk=rate) for rate in rates],
                hop_seconds=hop_seconds,
                gpu_groups=groups,
                recording=False,
            )
            assert run.pass_seconds == pytest.approx(expected, rel=0.02)


def test_the_random_settings_have_what_can_go_wrong() -> None:
    settings = [random_setting(seed) for seed in range(BLOCKS * BLOCK)]
    assert {len(setting.rates) for setting in settings} == set(range(1, 9))
    assert any(setting.gpu_groups == 1 and len(setting.rates) > 1 for setting in settings)
    assert any(setting.in_flight > 2 and setting.residency.by_place for setting in settings)
    assert {setting.shared_disk for setting in settings} == {False, True}
    assert all(set(setting.owners) == set(range(len(setting.rates))) for setting in settings)


def test_a_group_that_is_computed_too_early_is_noticed() -> None:
    """The checks can fail: a run without hops does not pass as one with hops."""
    setting = replace(random_setting(1), hop_seconds=0.0, owners=(0, 1), rates=(SectionRates(),) * 2)
    setting = replace(setting, timings=replace(setting.timings, layers=2), residency=Residency({}))
    check_order(setting.run(), setting)
    with pytest.raises(AssertionError):
        check_order(setting.run(), replace(setting, hop_seconds=0.5))
