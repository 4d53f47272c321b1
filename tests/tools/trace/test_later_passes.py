"""What the device waited for, when groups of the same name come again in the next pass."""

from actors.core.trace import Span
from pipeline.tools.trace.gaps import find_gaps

DISK, COMPUTE, KV_IN = "disk_reader", "compute_scheduler", "kv_uploader"


def work(actor: str, layer: int, group: str, seq: int, started: float, ended: float) -> Span:
    return Span(actor, "work", layer, group, seq, started, ended)


def kv(started: float, ended: float) -> Span:
    return work(KV_IN, 1, "kv", 0, started, ended)


def pieces(*kv_moves: Span) -> list[list[tuple[str, float, float]]]:
    """Two passes; layer 1 is read from 9 to 14 and starts at 20, and is read from 49 to 54 and starts at 60."""
    spans = []
    for pass_, at in enumerate((0, 40)):
        spans += [
            work(COMPUTE, 0, "attn", 2 * pass_, at, at + 10),
            work(DISK, 1, "attn", 2 * pass_ + 1, at + 9, at + 14),
        ]
        spans += [work(COMPUTE, 1, "attn", 2 * pass_ + 1, at + 20, at + 40)]
    return [
        [(piece.cause, piece.started, piece.ended) for piece in gap.pieces] for gap in find_gaps([*spans, *kv_moves])
    ]


BY_DISK = [("disk", 10, 14), ("launch", 14, 20)]
BY_DISK_AGAIN = [("disk", 50, 54), ("launch", 54, 60)]


def test_kv_blocks_of_a_later_pass_are_not_waited_for() -> None:
    assert pieces(kv(9, 12), kv(49, 52)) == [BY_DISK, BY_DISK_AGAIN]
    assert pieces(kv(9, 12), kv(21, 52)) == [BY_DISK, BY_DISK_AGAIN]


def test_kv_blocks_are_waited_for_in_the_pass_that_they_are_for() -> None:
    assert pieces(kv(14, 18), kv(49, 52)) == [[("disk", 10, 14), ("KV", 14, 18), ("launch", 18, 20)], BY_DISK_AGAIN]
    assert pieces(kv(9, 12), kv(49, 58)) == [BY_DISK, [("KV", 50, 58), ("launch", 58, 60)]]
