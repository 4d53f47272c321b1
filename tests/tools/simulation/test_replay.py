"""The durations of a recorded run, and when each of its passes could begin."""

import pytest

from actors.core.trace import Span
from pipeline.tools.simulation.replay import Replay
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

ORDER = ((0, "attn"), (0, "ffn"))


def work(actor: str, group: str, seq: int, started: float, ended: float, part: int = 0) -> Span:
    return Span(actor, "work", 0, group, seq, started, ended, part=part)


def replayed(spans: list[Span], *, one_link: bool = True) -> Replay:
    return Replay.of(spans, ORDER, one_link=one_link, check_seconds=0.0)


def begins(
    first: tuple[float, float], ready: float, computed: float, last_came: float = 4.0, *, hop: str = DISK
) -> float:
    """How long after pass 0 pass 1 began.

    Pass 0 computes until 10, and its last group comes at `last_came`. Of pass 1 the first group travels on the last hop
    during `first` and computes at `computed`, and its request comes at `ready`.
    """
    spans = [
        work(hop, "attn", 0, 0, 1),
        work(hop, "ffn", 1, 1, last_came),
        work(COMPUTE, "attn", 0, 2, 5),
        work(COMPUTE, "ffn", 1, 5, 10),
        work(hop, "attn", 2, *first),
        work(hop, "ffn", 3, first[1], first[1] + 1),
        work(COMPUTE, "attn", 2, computed, 40),
        work(COMPUTE, "ffn", 3, 40, 50),
        Span(COMPUTE, "request", 0, "attn", 0, -1, 1.5),
        Span(COMPUTE, "request", 0, "attn", 2, 10, ready),
    ]
    other = LINK if hop == DISK else DISK
    spans += [work(other, "ffn", 1, 1, 2)]
    replay = replayed(spans, one_link=hop == DISK)
    assert (replay.begin_seconds(0), replay.begin_seconds(2)) == (0, 0)
    return replay.begin_seconds(1)


def test_a_group_that_was_there_starts_as_soon_as_the_host_is_ready_to_launch_it() -> None:
    assert begins(first=(4, 8), ready=13, computed=16) == 6, "from 10 to 16"
    assert begins(first=(4, 13), ready=13, computed=16) == 6, "there just in time"


def test_a_group_that_came_later_does_not_tell_but_the_request_does() -> None:
    assert begins(first=(4, 15), ready=13, computed=16) == 3, "from 10 to 13"
    assert begins(first=(4, 15), ready=10, computed=16) == 0
    assert begins(first=(4, 15), ready=9, computed=16) == 0, "never before the end of the pass"


@pytest.mark.parametrize("hop", [DISK, LINK])
def test_a_pass_ends_when_its_last_group_has_come_if_that_is_later(hop: str) -> None:
    assert begins(first=(12, 12.5), ready=13, computed=16, last_came=12, hop=hop) == 4, "from 12 to 16"
    assert begins(first=(12, 15), ready=13, computed=16, last_came=12, hop=hop) == 1, "from 12 to 13"
    assert begins(first=(4, 8), ready=13, computed=16, last_came=4, hop=hop) == 6


def test_a_pass_that_was_never_computed_does_not_begin_late() -> None:
    request = [Span(COMPUTE, "request", 0, "attn", 0, -1, 0), Span(COMPUTE, "request", 0, "attn", 2, 6, 9)]
    replay = replayed([work(DISK, "attn", 0, 0, 1), work(COMPUTE, "attn", 0, 1, 2), *request])
    assert [replay.begin_seconds(pass_) for pass_ in (0, 1, 2)] == [0, 0, 0]


def test_durations_are_those_of_the_pass_and_then_those_of_the_last() -> None:
    spans = [
        work(DISK, "attn", 0, 0, 2),
        work(DISK, "ffn", 1, 0, 5),  # issued with the one before, read behind it
        work(DISK, "attn", 2, 7, 8),
        work(LINK, "attn", 0, 2, 6),
        work(LINK, "ffn", 1, 7, 8),
        work(COMPUTE, "attn", 0, 6, 7),
        work(COMPUTE, "attn", 0, 8, 10, part=1),
        work(COMPUTE, "ffn", 1, 10, 14),
        work(COMPUTE, "attn", 2, 14, 19),
    ]
    replay = replayed(spans, one_link=False)
    assert [replay.seconds(DISK, pass_, (0, "attn")) for pass_ in range(3)] == [2, 1, 1]
    assert [replay.seconds(DISK, pass_, (0, "ffn")) for pass_ in range(2)] == [3, 3]
    assert [replay.seconds(LINK, pass_, (0, "attn")) for pass_ in range(2)] == [4, 4]
    assert [replay.seconds(COMPUTE, pass_, (0, "attn")) for pass_ in range(3)] == [3, 5, 5]
    assert replay.seconds(COMPUTE, 0, (0, "ffn")) == 4
    assert replayed(spans).seconds(LINK, 0, (0, "attn")) == 0, "where memory is one"
