"""The columns of the policy table, from spans made by hand."""

import json
from collections import defaultdict
from dataclasses import replace

import pytest
from support.columns import COLUMNS

from actors.core.trace import Span
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.overlap import Overlap
from pipeline.tools.trace.passes import group_times


def order_of(layers: int) -> list[tuple[int, str]]:
    return [(layer, group) for layer in range(layers) for group in ("attn", "ffn")]


def spans_of(actor: str, *rows: tuple[int, str, int, float, float]) -> list[Span]:
    """Rows of layer, group, seq, start and end in milliseconds."""
    return [Span(actor, "work", layer, group, seq, a / 1000, b / 1000) for layer, group, seq, a, b in rows]


READ = spans_of(
    "disk_reader",
    (0, "attn", 0, 0, 10),
    (0, "ffn", 1, 10, 30),
    (1, "attn", 2, 30, 40),
    (1, "ffn", 3, 50, 70),
)
COMPUTED = spans_of(
    "compute_scheduler",
    (0, "attn", 0, 12, 20),
    (0, "ffn", 1, 33, 45),
    (1, "attn", 2, 46, 60),
    (1, "ffn", 3, 75, 80),
)


def test_the_columns_and_their_order() -> None:
    row = Overlap.of("mine", [*READ, *COMPUTED], order_of(2)).as_dict()
    assert list(row) == COLUMNS
    assert list(row["groups_requested"]) == ["attn_window", "ffn_window"]
    assert list(row["link_use"]) == ["attn_window", "ffn_window", "total"]
    assert json.loads(json.dumps(row)) == row


def test_every_column_of_two_layers() -> None:
    row = Overlap.of("mine", [*READ, *COMPUTED], order_of(2), blocking=True)
    assert row.total_ms == pytest.approx(80)
    assert row.ms_per_layer == pytest.approx(40), "too few layers for a steady half"
    assert row.ideal_ms == pytest.approx(60), "the disk: 10 + 20 + 10 + 20"
    assert row.ratio_to_ideal == pytest.approx(80 / 60)
    assert row.gap_in_layer_ms == pytest.approx(13)
    assert row.gap_between_layers_ms == pytest.approx(1)
    assert row.l0_l1_ms == pytest.approx(14)
    assert row.l0_l4_ms == pytest.approx(56), "four times, for want of four layers"
    assert row.groups_requested == {"attn_window": 0.5, "ffn_window": 0}
    assert row.link_use["attn_window"] == pytest.approx(18 / 22), "8 of 12-20, and 10 of 46-60"
    assert row.link_use["ffn_window"] == pytest.approx(7 / 17), "33-40 of 33-45, and nothing of 75-80"
    assert row.link_use["total"] == pytest.approx(60 / 80)
    assert row.host_blocked_ms == pytest.approx((3 + 1 + 5) / 3), "from arrival, from the end before, from arrival"
    assert row.groups_on_device_peak == 2
    assert row.depth_used == 1


def test_slices_of_the_head_count_as_the_last_part_and_need_not_be_computed() -> None:
    order = [*order_of(2), (2, "head.0"), (2, "head.1")]
    work = {"compute_scheduler": [*COMPUTED[:3], *spans_of("compute_scheduler", (2, "head.0", 4, 80, 90))]}
    groups = group_times(defaultdict(list, work), order)
    kinds = {position: group.kind for position, group in groups.items()}
    assert kinds == {0: "attn", 1: "ffn", 2: "attn", 3: "ffn", 4: "ffn"}, "an ffn took no time, head.1 was not computed"


def test_only_blocking_policies_block_the_host() -> None:
    assert Overlap.of("mine", [*READ, *COMPUTED], order_of(2)).host_blocked_ms == 0


def test_triggers_tell_themselves_what_they_asked_for() -> None:
    row = Overlap.of("mine", [*READ, *COMPUTED], order_of(2), asked={"attn": 5, "ffn": 4})
    assert row.groups_requested == {"attn_window": 5, "ffn_window": 4}


def test_waits_and_strangers_are_not_work() -> None:
    waits = [span._replace(what=what, ended=9.0) for span in READ + COMPUTED for what in ("slot", "event", "check")]
    strangers = [span._replace(actor="checksum", ended=9.0) for span in READ]
    embedding = [COMPUTED[0]._replace(layer=-1, group="embed", started=0.0, ended=0.002)]
    expected = Overlap.of("mine", [*READ, *COMPUTED], order_of(2))
    assert Overlap.of("mine", [*waits, *strangers, *embedding, *READ, *COMPUTED], order_of(2)) == expected


def test_transfers_belong_to_computations_by_seq_not_by_place() -> None:
    """A policy with triggers plans in another order than that of computing."""
    swapped = {1: 2, 2: 1}
    spans = [span._replace(seq=swapped.get(span.seq, span.seq)) for span in (*READ, *COMPUTED)]
    assert Overlap.of("mine", spans, order_of(2)) == Overlap.of("mine", [*READ, *COMPUTED], order_of(2))


def test_queued_reads_move_one_after_the_other() -> None:
    """Issued all at once, they hold slots at once, but layer 1's bytes begin to move when layer 0's have landed."""
    read = spans_of("disk_reader", *((*key, seq, 0, 10 + 10 * seq) for seq, key in enumerate(order_of(2))))
    computed = spans_of(
        "compute_scheduler", *((*key, seq, 10 + 10 * seq, 20 + 10 * seq) for seq, key in enumerate(order_of(2)))
    )
    row = Overlap.of("mine", [*read, *computed], order_of(2))
    assert (row.depth_used, row.groups_on_device_peak) == (1, 4)
    assert row.groups_requested == {"attn_window": 1, "ffn_window": 0.5}
    assert row.link_use == {
        "attn_window": pytest.approx(1),
        "ffn_window": pytest.approx(0.5),
        "total": pytest.approx(0.8),
    }


def test_with_two_hops_a_group_enters_the_device_with_its_upload() -> None:
    uploads = spans_of(
        "gpu_uploader", (0, "attn", 0, 10, 11), (0, "ffn", 1, 30, 31), (1, "attn", 2, 45, 46), (1, "ffn", 3, 70, 71)
    )
    row = Overlap.of("mine", [*READ, *uploads, *COMPUTED], order_of(2), blocking=True)
    assert row.groups_on_device_peak == 1
    assert row.link_use["total"] == pytest.approx(60 / 80), "the disk is the busier one"
    assert row.host_blocked_ms == pytest.approx((2 + 0 + 4) / 3), "it is there when the upload has landed"


def test_micro_batches_compute_on_two_lanes() -> None:
    """FFN of one beside attention of the other: idle is when neither computes, and each lane is a resource."""
    part = {
        ("attn", 0): (0, 10),
        ("attn", 1): (10, 20),
        ("ffn", 0): (10, 25),
        ("ffn", 1): (25, 40),
    }
    computed = [
        Span("compute_scheduler", "work", layer, group, 2 * layer + (group == "ffn"), a, b, part=number)
        for layer in range(2)
        for group in ("attn", "ffn")
        for number in range(2)
        for a, b in [[(moment + 50 * layer) / 1000 for moment in part[group, number]]]
    ]
    row = Overlap.of("mine", computed, order_of(2))
    assert row.total_ms == pytest.approx(90)
    assert row.ideal_ms == pytest.approx(60), "two layers of 2 x 15 ms of ffn"
    assert (row.gap_in_layer_ms, row.gap_between_layers_ms) == (pytest.approx(0), pytest.approx(10))


def test_kv_lanes_are_resources() -> None:
    moves = [Span("kv_uploader", "work", 0, "kv", 0, 0.001, 0.071)]
    assert Overlap.of("mine", [*READ, *COMPUTED, *moves], order_of(2)).ideal_ms == pytest.approx(70)


def test_slices_of_the_head_count_in_totals_only() -> None:
    head = spans_of("compute_scheduler", (2, "head.0", 4, 80, 90), (2, "head.1", 5, 90, 99))
    order = [*order_of(2), (2, "head.0"), (2, "head.1")]
    without = Overlap.of("mine", [*READ, *COMPUTED], order_of(2))
    row = Overlap.of("mine", [*READ, *COMPUTED, *head], order)
    assert row.total_ms == pytest.approx(99)
    assert (row.l0_l1_ms, row.gap_in_layer_ms) == (without.l0_l1_ms, without.gap_in_layer_ms)


def test_warm_up_passes_can_be_left_out() -> None:
    slow = [span._replace(started=span.started * 3, ended=span.ended * 3) for span in (*READ, *COMPUTED)]
    later = [
        span._replace(seq=span.seq + 4, started=span.started + 0.24, ended=span.ended + 0.24)
        for span in (*READ, *COMPUTED)
    ]
    both = Overlap.of("mine", [*slow, *later], order_of(2))
    last = Overlap.of("mine", [*slow, *later], order_of(2), first_pass=1)
    assert both.total_ms == pytest.approx(320)
    expected = Overlap.of("mine", [*READ, *COMPUTED], order_of(2)).as_dict()
    assert last.as_dict() == expected
    first = Overlap.of("mine", [*slow, *later], order_of(2), passes=1)
    assert first.total_ms == pytest.approx(240)


def test_no_computation_is_no_row() -> None:
    with pytest.raises(ValueError, match="no computation was recorded from pass 1 on"):
        Overlap.of("mine", [*READ, *COMPUTED], order_of(2), first_pass=1)


@pytest.mark.parametrize("zero", ["attn", "ffn", "attn_io", "ffn_io"])
@pytest.mark.parametrize("policy", ["history", "stage2", "backpressure"])
def test_what_takes_no_time_leaves_no_span_but_is_done_all_the_same(policy: str, zero: str) -> None:
    """Nothing of length zero is recorded. A nanosecond, which is, must make no difference."""
    timings = LayerTimings(layers=12, attn=0.08, ffn=0.12, attn_io=0.1, ffn_io=0.1)
    none, hardly = (
        simulate(replace(timings, **{zero: seconds}), POLICIES[policy]).overlap().as_dict() for seconds in (0.0, 1e-9)
    )
    for column in COLUMNS[1:9]:
        assert none[column] == pytest.approx(hardly[column], abs=1e-3), column


def test_a_steady_half_is_not_disturbed_by_a_slow_start() -> None:
    seq = {key: index for index, key in enumerate(order_of(10))}
    starts = {(layer, group): 60 * min(layer, 3) + 50 * layer + 20 * (group == "ffn") for layer, group in seq}
    computed = spans_of("compute_scheduler", *((*key, seq[key], starts[key], starts[key] + 15) for key in seq))
    computed = sorted(computed, key=lambda span: span.seq)
    row = Overlap.of("mine", computed, order_of(10))
    assert row.ms_per_layer == pytest.approx(50)
    assert (row.gap_in_layer_ms, row.gap_between_layers_ms) == (pytest.approx(5), pytest.approx(15))
    assert row.l0_l4_ms == pytest.approx(80)


@pytest.mark.parametrize("layers", [3, 10])
def test_what_a_layer_takes_is_an_average_over_the_passes(layers: int) -> None:
    """A machine that hesitates in the last of eight passes tells nothing about the others."""
    spans, groups, slow = [], 2 * layers, 8 * 2 * layers - 2  # the last attn of all starts late
    for seq in range(8 * groups):
        layer, kind = divmod(seq % groups, 2)
        late = 80.0 if seq >= slow else 0.0
        spans += spans_of(
            "compute_scheduler", (layer, ("attn", "ffn")[kind], seq, 10 * seq + late, 10 * seq + late + 5)
        )
    row = Overlap.of("mine", spans, order_of(layers))
    apart = 80 / (7 * 3) if layers == 3 else 80 / (8 * 4)
    assert row.ms_per_layer == pytest.approx(20 + apart)
    steady = 1 if layers == 3 else 4
    assert row.gap_in_layer_ms == pytest.approx(5)
    assert row.gap_between_layers_ms == pytest.approx(5 + 80 / (8 * steady))
