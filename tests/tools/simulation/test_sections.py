"""Several sections on the production actors: passes take what the closed form says, and one failure ends all."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from support.cases import EVERYTHING

from actors.core.errors import ActorFailed
from actors.core.message import GroupKey
from pipeline.engine.dealing import Share, deal, hops, pass_seconds
from pipeline.engine.residency import Residency
from pipeline.tools.simulation.loop import run_virtual
from pipeline.tools.simulation.sim_passes import SectionRates
from pipeline.tools.simulation.sim_sections import SimulatedSections, run_sections, sim_sections, simulate_sections
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.recording import COMPUTE, DISK

GIGA = 1e9
"""Bytes a second of a section of rate 1: a simulated second is that many bytes."""
STREAMED = LayerTimings(layers=64, attn=0.0002, ffn=0.0008, attn_io=0.02, ffn_io=0.08)
GPU_GROUPS = 4


def contiguous(layers: int, sections: int) -> list[int]:
    return [layer * sections // layers for layer in range(layers)]


def in_turn(layers: int, sections: int) -> list[int]:
    return [layer % sections for layer in range(layers)]


def layer_bytes(timings: LayerTimings) -> list[int]:
    """There is no head."""
    return [round((timings.attn_io + timings.ffn_io) * GIGA)] * timings.layers + [0]


def shares(timings: LayerTimings, rates: Sequence[float], room: int = 0) -> list[Share]:
    slots = layer_bytes(timings)[0] * GPU_GROUPS // 2
    return [Share(room, rate * GIGA, slots) for rate in rates]


def formula(timings: LayerTimings, owners: Sequence[int], shared: Sequence[Share], hop_seconds: float = 0.0) -> float:
    computing = timings.layers * (timings.attn + timings.ffn)
    return pass_seconds(layer_bytes(timings), [*owners, owners[-1]], shared, hop_seconds, computing)


@pytest.mark.parametrize("sections", [2, 3, 4, 8, 16, 32, 64] if EVERYTHING else [3, 64])
@pytest.mark.parametrize("hop_seconds", [0.0, 1e-5, 2e-3] if EVERYTHING else [2e-3])
def test_passes_take_what_the_closed_form_says(sections: int, hop_seconds: float) -> None:
    shared = shares(STREAMED, [1.0] * sections)
    dealt = deal(layer_bytes(STREAMED), shared, hop_seconds)[:-1]
    for owners in (dealt, contiguous(STREAMED.layers, sections)):
        run = simulate_sections(STREAMED, owners, hop_seconds=hop_seconds, gpu_groups=GPU_GROUPS)
        expected = formula(STREAMED, owners, shared, hop_seconds)
        assert run.pass_seconds == pytest.approx(expected, rel=0.02)
        latency = run.ended[-1] - run.began[-1] + hop_seconds
        assert latency == pytest.approx(expected, rel=0.02)


def test_dealt_in_turn_one_request_has_all_links() -> None:
    sections = 4
    alone, dealt, following = (
        simulate_sections(STREAMED, owners).pass_seconds
        for owners in (
            [0] * STREAMED.layers,
            in_turn(STREAMED.layers, sections),
            contiguous(STREAMED.layers, sections),
        )
    )
    assert alone / dealt == pytest.approx(sections, rel=0.02)
    assert alone / following < 1.5


def test_passes_in_flight_share_no_bytes() -> None:
    """N contiguous sections with N passes in flight end N passes in the time of one, each of an Nth of the requests."""
    sections = 4
    one = simulate_sections(STREAMED, [0] * STREAMED.layers)
    many = simulate_sections(STREAMED, contiguous(STREAMED.layers, sections), in_flight=sections)
    assert many.pass_seconds == pytest.approx(one.pass_seconds / sections, rel=0.02)
    assert many.token_seconds == pytest.approx(one.token_seconds, rel=0.02)


def test_where_computing_binds_one_pass_has_one_section_at_a_time() -> None:
    computed = replace(STREAMED, attn=0.04, ffn=0.16)
    for owners in (in_turn(64, 4), contiguous(64, 4)):
        run = simulate_sections(computed, owners)
        assert run.pass_seconds == pytest.approx(64 * 0.2, rel=0.01)
    many = simulate_sections(computed, contiguous(64, 4), in_flight=4)
    assert many.pass_seconds == pytest.approx(64 * 0.2 / 4, rel=0.02)


def test_parts_of_a_pass_hardly_compute_beside_each_other() -> None:
    """All parts go through a group before any goes through the next. So no second half of a layer begins before all
    first halves have ended, and only the first halves are computed beside the second ones of the section before."""
    computed = LayerTimings(layers=64, attn=0.02, ffn=0.08, attn_io=1e-6, ffn_io=1e-6)

    def gain(owners: Sequence[int]) -> float:
        whole, parts = (simulate_sections(computed, owners, micro_batches=count).pass_seconds for count in (1, 4))
        return whole / parts

    assert gain(contiguous(64, 4)) == pytest.approx(1.0, abs=0.02)
    assert gain(in_turn(64, 4)) == pytest.approx(0.1 / (0.02 / 4 + 0.08), rel=0.02)


@pytest.mark.parametrize(("rates", "seconds"), [(SectionRates(compute=2), 0.05), (SectionRates(link=0.1), 0.3)])
def test_a_section_computes_and_uploads_at_rates_of_its_own(rates: SectionRates, seconds: float) -> None:
    timings = LayerTimings(layers=8, attn=0.05, ffn=0.05, attn_io=0.01, ffn_io=0.02, attn_disk=1e-6, ffn_disk=1e-6)
    run = simulate_sections(timings, [0] * 8, rates=[rates])
    assert run.pass_seconds == pytest.approx(8 * seconds, rel=0.02)


def test_a_hop_is_behind_each_change_of_section_and_on_the_way_back() -> None:
    computed = LayerTimings(layers=6, attn=0.01, ffn=0.01, attn_io=1e-6, ffn_io=1e-6)
    for owners in ([0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 0]):
        expected = 6 * 0.02 + hops(owners) * 0.5
        assert simulate_sections(computed, owners, hop_seconds=0.5).pass_seconds == pytest.approx(expected)


def test_sections_that_share_a_disk_take_turns_at_it() -> None:
    timings = replace(STREAMED, attn_disk=0.02, ffn_disk=0.08, attn_io=0.002, ffn_io=0.008)
    own, shared = (
        simulate_sections(timings, in_turn(64, 4), shared_disk=shared).pass_seconds for shared in (False, True)
    )
    assert own == pytest.approx(64 * 0.1 / 4, rel=0.02)
    assert shared == pytest.approx(64 * 0.1, rel=0.02)


def test_a_slow_section_gets_fewer_layers_and_otherwise_holds_all_up() -> None:
    rates = [1.0, 1.0, 0.25, 1.0]
    shared = shares(STREAMED, rates)
    dealt = deal(layer_bytes(STREAMED), shared)[:-1]
    sections = [SectionRates(disk=rate) for rate in rates]
    fair, alike = (
        simulate_sections(STREAMED, owners, rates=sections).pass_seconds for owners in (dealt, in_turn(64, 4))
    )
    assert alike == pytest.approx(16 * 0.1 / 0.25, rel=0.02)
    assert fair == pytest.approx(formula(STREAMED, dealt, shared), rel=0.02)
    assert fair < 0.35 * alike


def test_groups_that_stay_move_once() -> None:
    """Half of each section's layers stay, one after the other."""
    owners = in_turn(64, 4)
    stays = tuple(key for key in STREAMED.order if key[0] // 4 % 2)
    run = simulate_sections(STREAMED, owners, residency=Residency({"host": stays}))
    shared = shares(STREAMED, [1.0] * 4, room=8 * layer_bytes(STREAMED)[0])
    assert run.pass_seconds == pytest.approx(formula(STREAMED, owners, shared), rel=0.02)
    reads = [span for trace in run.traces for span in trace.spans if span.actor == DISK and span.what == "work"]
    assert sum(span.key in stays for span in reads) == len(stays)


@dataclass(frozen=True)
class Failing:
    """The timings, but for one group of one pass, which cannot be read or computed."""

    timings: LayerTimings
    actor: str
    at: tuple[int, GroupKey]
    one_link: bool = True
    check_seconds: float = 0.0
    kv_seconds: float = 0.0

    @property
    def order(self) -> Sequence[GroupKey]:
        return self.timings.order

    def begin_seconds(self, pass_: int) -> float:
        return 0.0

    def seconds(self, actor: str, pass_: int, key: GroupKey) -> float:
        if (actor, (pass_, key)) == (self.actor, self.at):
            raise OSError("the cable is out")
        return self.timings.seconds(actor, pass_, key)


@pytest.mark.parametrize("actor", [DISK, COMPUTE])
@pytest.mark.parametrize("layer", [0, 1, 5])
def test_the_failure_of_one_section_ends_all_with_one_error(actor: str, layer: int) -> None:
    timings = Failing(
        LayerTimings(layers=6, attn=0.01, ffn=0.02, attn_io=0.03, ffn_io=0.04), actor, (2, (layer, "ffn"))
    )

    async def main() -> int:
        passes, lines = sim_sections(timings, in_turn(6, 3), hop_seconds=1e-3)
        with pytest.raises(ActorFailed, match=f"^{actor} failed at layer {layer} group 'ffn': .*cable") as caught:
            await run_sections(passes, lines, 9)
        assert isinstance(caught.value.__cause__, OSError)
        assert len(asyncio.all_tasks()) == 1
        assert all(not budget.held(kind) for one in lines for budget in one.line.budgets for kind in budget.slots)
        return len(passes.ended)

    ended = run_virtual(main())
    assert ended == 2 if actor == COMPUTE else 1 <= ended <= 2  # a pass is read while the one before is computed


def test_two_runs_are_the_same() -> None:
    def run() -> SimulatedSections:
        jittered = replace(STREAMED, layers=12, jitter=0.4, attn_disk=0.01, ffn_disk=0.05, kv_seconds=0.002)
        return simulate_sections(jittered, in_turn(12, 3), hop_seconds=1e-3, shared_disk=True, micro_batches=2)

    first, second = run(), run()
    assert (first.began, first.ended) == (second.began, second.ended)
    assert [one.spans for one in first.traces] == [one.spans for one in second.traces]
