"""The heat map as people read it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tools.commands.heat_map import CHOSEN, LEGEND, heat_map

MAP = """\
gpu_groups  1 lane   4 lanes    window
         1  1.50 █   1.50 █     101 MB
         2  1.20 ▓   1.04 ▒     122 MB
         3  1.01 ░   1.00 ░*    222 MB
         4  does not fit into memory"""


def test_a_small_map() -> None:
    seconds = {(1, 1): 3.0, (1, 4): 3.0, (2, 1): 2.4, (2, 4): 2.08, (3, 1): 2.02, (3, 4): 2.0}
    windows = {1: 101_000_000, 2: 122_000_000, 3: 222_000_000}
    assert heat_map(seconds, windows, range(1, 5), {1: "1 lane", 4: "4 lanes"}, (3, 4)) == f"{MAP}\n{LEGEND}"


positive = st.floats(1e-6, 1e6)


@given(times=st.lists(positive, min_size=6, max_size=6), scale=st.sampled_from([2.0**-9, 1.0, 2.0**9]))
def test_cells_are_relative_and_aligned(times: list[float], scale: float) -> None:
    """Whatever the unit, and however far apart the times."""
    keys = list(itertools.product((1, 2, 3), (1, 2)))
    seconds = {key: time * scale for key, time in zip(keys, times, strict=True)}
    windows, columns = {1: 1, 2: 10**9, 3: 2 * 10**9}, {1: "queue 1", 2: "queue 2"}
    heading, *rows, _ = heat_map(seconds, windows, (1, 2, 3), columns, (2, 1)).splitlines()
    assert len({len(row) for row in (heading, *rows)}) == 1
    assert [row.count(CHOSEN) for row in rows] == [0, 1, 0]
    for budget, row in zip((1, 2, 3), rows, strict=True):
        ratios = [times[keys.index((budget, queue))] / min(times) for queue in (1, 2)]
        assert row.split()[1:4:2] == [f"{ratio:.2f}" for ratio in ratios]
        assert row.index(f"{ratios[0]:.2f} ") == heading.index("queue 1")
        assert row[heading.index("queue 2") :].startswith(f"{ratios[1]:.2f} ")


def test_the_shade_tells_how_slow() -> None:
    shades = [
        heat_map({(1, 1): 1.0, (2, 1): ratio}, {1: 1, 2: 1}, (1, 2), {1: "queue 1"}, (1, 1))
        for ratio in (1.01, 1.05, 1.2, 9)
    ]
    assert [text.splitlines()[2].split()[2] for text in shades] == ["░", "▒", "▓", "█"]
