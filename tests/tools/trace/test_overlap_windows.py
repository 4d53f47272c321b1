"""The policy table's columns once more: two hops, several passes, and windows that overlap, from spans made by hand."""

import pytest

from actors.core.trace import Span
from pipeline.tools.trace.overlap import Overlap

ORDER = [(layer, group) for layer in range(2) for group in ("attn", "ffn")]
Stretch = tuple[float, float]


def work(actor: str, *stretches: Stretch, layers: int = 2) -> list[Span]:
    """Of the groups in compute order, pass after pass over so many layers; milliseconds."""
    order = [(layer, group) for layer in range(layers) for group in ("attn", "ffn")]
    return [
        Span(actor, "work", *order[seq % len(order)], seq, started / 1000, ended / 1000)
        for seq, (started, ended) in enumerate(stretches)
    ]


def disk(*stretches: Stretch, layers: int = 2) -> list[Span]:
    return work("disk_reader", *stretches, layers=layers)


def link(*stretches: Stretch) -> list[Span]:
    return work("gpu_uploader", *stretches)


def computing(*stretches: Stretch, layers: int = 2) -> list[Span]:
    return work("compute_scheduler", *stretches, layers=layers)


def test_the_link_that_counts_is_the_one_that_moves_bytes_for_longer() -> None:
    reads = disk((0, 10), (10, 20), (20, 30), (30, 40))
    uploads = link((10, 30), (30, 50), (50, 70), (70, 90))
    row = Overlap.of("mine", [*reads, *uploads, *computing((30, 35), (50, 55), (70, 75), (90, 100))], ORDER)
    assert row.ideal_ms == pytest.approx(80), "H2D, 4 x 20"
    assert row.link_use["total"] == pytest.approx(0.8)
    assert row.link_use["attn_window"] == pytest.approx(1), "the disk would have 5 of 10"
    assert row.link_use["ffn_window"] == pytest.approx(5 / 15), "the disk would have none"


def test_what_passes_that_were_left_out_did_is_in_no_total() -> None:
    """The first pass ends at 80; the second's reads begin before that, or only after a rest."""
    first_reads, first = [(0, 10), (10, 30), (30, 40), (40, 60)], [(12, 20), (33, 45), (46, 60), (70, 80)]
    second = [(90, 100), (110, 120), (130, 140), (150, 160)]
    early = [(60, 75), (75, 85), (85, 90), (90, 100)]
    late = [(84, 90), (90, 100), (100, 110), (110, 120)]
    for reads, busy in ((early, 5 + 5 + 10), (late, 36)):
        row = Overlap.of("mine", [*disk(*first_reads, *reads), *computing(*first, *second)], ORDER, first_pass=1)
        assert row.total_ms == pytest.approx(80), "from 80 to 160"
        assert row.ideal_ms == pytest.approx(40), "the device, 4 x 10"
        assert row.link_use["total"] == pytest.approx(busy / 80)
        assert row.ms_per_layer == pytest.approx(40)


def test_passes_behind_the_window_are_in_no_total() -> None:
    spans = [*disk((0, 10), (10, 20), (20, 30), (30, 90)), *computing((10, 20), (20, 30), (30, 40), (90, 95))]
    order = ORDER[:2]
    row = Overlap.of("mine", [span._replace(layer=0) for span in spans], order, passes=1)
    assert row.total_ms == pytest.approx(30)
    assert row.ideal_ms == pytest.approx(30), "the disk, up to the end of the window"


def test_depth_is_how_far_ahead_it_ever_went() -> None:
    computed = [(20 + 10 * seq, 30 + 10 * seq) for seq in range(8)]
    ahead = [(0, 4), (4, 8), (8, 21), (21, 22), (22, 23), (23, 24), (71, 72), (72, 73)]
    order = [(layer, group) for layer in range(4) for group in ("attn", "ffn")]
    row = Overlap.of("mine", [*disk(*ahead, layers=4), *computing(*computed, layers=4)], order)
    assert row.depth_used == 2, "layer 2 was asked for while layer 0 computed, layer 3 while layer 2 did"


def test_a_pass_begins_for_other_reasons_than_a_blocked_host() -> None:
    """Its first group waits for tokens to be chosen; only that of 2, 3 and 1 ms for the others is blocking."""
    reads = disk(*((0, 1),) * 8)
    computed = computing((50, 60), (62, 70), (73, 80), (81, 90), (190, 200), (202, 210), (213, 220), (221, 230))
    row = Overlap.of("mine", [*reads, *computed], ORDER, blocking=True)
    assert row.host_blocked_ms == pytest.approx(2)


def test_windows_that_overlap_count_once() -> None:
    """Micro-batches: the ffn of layer 0 from 10 to 40, that of layer 1 from 30 to 60; the link moves from 30 to 40."""
    parts = [[(0, 5), (5, 10)], [(10, 12), (35, 40)], [(10, 20), (20, 25)], [(30, 32), (55, 60)]]
    computed = [
        Span("compute_scheduler", "work", *ORDER[seq], seq, started / 1000, ended / 1000, part=part)
        for seq, halves in enumerate(parts)
        for part, (started, ended) in enumerate(halves)
    ]
    reads = disk((30, 40))
    row = Overlap.of("mine", [*reads, *computed], ORDER)
    assert row.link_use["ffn_window"] == pytest.approx(10 / 50)
    assert row.link_use["attn_window"] == 0
