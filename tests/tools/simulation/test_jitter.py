"""Drawn times: log-normal, around the value that was given."""

from collections.abc import Callable
from functools import partial
from statistics import fmean, stdev

import pytest

from actors.core.message import GroupKey
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

TIMES = {"attn": 0.08, "ffn": 0.12, "attn_io": 0.1, "ffn_io": 0.11, "attn_disk": 0.2, "ffn_disk": 0.3}
DRAWS = 4000
JITTER = 0.6
Draw = Callable[[int, GroupKey], float]


def drawn(timings: LayerTimings) -> dict[str, tuple[Draw, str]]:
    """By the name of a nominal time: how it is drawn, for which group."""
    actors = {"": COMPUTE, "_io": LINK, "_disk": DISK}
    return {
        f"{group}{suffix}": (partial(timings.seconds, actor), group)
        for suffix, actor in actors.items()
        for group in ("attn", "ffn")
    }


@pytest.mark.parametrize("name", TIMES)
def test_the_mean_is_the_value_and_the_spread_is_the_jitter(name: str) -> None:
    draw, group = drawn(LayerTimings(layers=1, **TIMES, jitter=JITTER))[name]
    seconds = [draw(pass_, (0, group)) for pass_ in range(DRAWS)]
    assert fmean(seconds) == pytest.approx(TIMES[name], rel=0.04)
    assert stdev(seconds) / fmean(seconds) == pytest.approx(JITTER, rel=0.06)
    assert min(seconds) > 0


def test_every_time_is_drawn_for_itself_and_always_the_same() -> None:
    timings = LayerTimings(layers=2, **dict.fromkeys(TIMES, 1.0), jitter=JITTER)
    times = [
        draw(pass_, (layer, group)) for pass_ in (0, 1) for layer in (0, 1) for draw, group in drawn(timings).values()
    ]
    assert len(set(times)) == len(times) == 2 * 2 * 6
    again = LayerTimings(layers=2, **dict.fromkeys(TIMES, 1.0), jitter=JITTER)
    assert again.seconds(DISK, 1, (1, "ffn")) == timings.seconds(DISK, 1, (1, "ffn"))
    other = LayerTimings(layers=2, **dict.fromkeys(TIMES, 1.0), jitter=JITTER, seed=1)
    assert other.seconds(DISK, 1, (1, "ffn")) != timings.seconds(DISK, 1, (1, "ffn"))


def test_without_jitter_the_value_itself_is_given() -> None:
    timings = LayerTimings(layers=1, **TIMES)
    assert {name: draw(3, (0, group)) for name, (draw, group) in drawn(timings).items()} == TIMES
