"""A pass against its floors: what the figures are made of, and that each is really measured."""

from typing import Any

import pytest

from pipeline.api import BUNDLED
from pipeline.errors import ConfigError
from pipeline.tools.bench.one_pass import PassReport, bench_pass, tokens_of
from pipeline.tools.commands.bench_pass import pass_table

ROUNDS = 2


def report(**told: Any) -> PassReport:
    columns = {
        "pass_seconds": (1.0, 1.1, 1.2),
        "recorded_seconds": (1.1, 1.1, 1.2),
        "read_floor_seconds": (1.0, 1.0, 1.0),
        "upload_floor_seconds": (0.0, 0.0, 0.0),
        "compute_floor_seconds": (0.5, 0.5, 1.2),
        "both_seconds": (0.9, 1.1, 1.2),
        "sequential_seconds": (1.5, 1.5, 2.2),
        "first_wait_seconds": (0.0,) * 3,
        "wait_seconds": (0.0,) * 3,
    }
    named = {"model": "m", "tokens": 1, "read_bytes_per_pass": 2.0, "needed_bytes_per_pass": 2.0}
    named |= {"moving_groups": 24, "aliased": False}
    return PassReport(**(columns | named | told))  # type: ignore[arg-type]


def test_each_round_has_its_own_floor() -> None:
    one = report()
    assert one.floors == [1.0, 1.0, 1.2]
    assert one.ratios == pytest.approx([1.0, 1.1, 1.0])
    assert one.binds == "disk"
    assert report(compute_floor_seconds=(2.0,) * 3).binds == "compute"


def test_gain_is_what_overlapping_saves_by_what_it_could_save() -> None:
    assert report().gain == pytest.approx(1.0), "1, 0.8 and 1"
    assert report(pass_seconds=(1.5, 1.5, 2.2)).gain == pytest.approx(0.0)
    assert report(sequential_seconds=(1.0, 1.0, 1.0)).gain == 1.0, "where there is nothing to save"


def test_what_reading_and_computing_cost_each_other_is_not_ours() -> None:
    one = report()
    assert one.ratios_to_both == pytest.approx([1.0, 1.0, 1.0]), "never less than the slower alone"
    assert one.gain_of_both == pytest.approx(1.0)
    assert report(both_seconds=(1.25,) * 3).gain_of_both == pytest.approx(1.6), "0.5/0.25, 0.4/0.25 and 1/0.95"


def test_a_pass_that_reads_nothing_has_a_row_too() -> None:
    nothing = report(moving_groups=0, read_bytes_per_pass=0.0, needed_bytes_per_pass=0.0)
    assert [line.split()[2:5] for line in pass_table([nothing]).splitlines()[2:]] == [["0", "B", "-"]]


def test_recording_is_compared_round_by_round() -> None:
    assert report().recording_ratio == pytest.approx(1.0)


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
@pytest.mark.parametrize("residency", [True, False])
async def test_everything_is_measured(device: str, residency: bool) -> None:
    settings = {"device": device, "residency": residency}
    one, recording = await bench_pass(BUNDLED, settings, 5, ROUNDS, lambda text: None)
    assert (one.model, one.tokens, one.aliased) == ("bundled", 5, False)
    assert len(one.ratios) == ROUNDS
    for name in ("pass_seconds", "recorded_seconds", "compute_floor_seconds", "both_seconds", "sequential_seconds"):
        assert min(getattr(one, name)) > 0
    assert (min(one.read_floor_seconds) > 0) == (not residency), "what stays is not read"
    assert (max(one.upload_floor_seconds) > 0) == (device == "cpu-copy" and not residency)
    assert recording.spans
    assert one.moving_groups == (0 if residency else 24)
    weights = 15e6
    assert (one.read_bytes_per_pass > weights) == (not residency)
    assert set(one.as_dict()) > {"ratios", "gain", "binds", "recording_ratio", "sequential_seconds"}


@pytest.mark.usefixtures("short_measurements")
async def test_tokens_may_be_told_as_multiples_of_the_balance() -> None:
    said: list[str] = []
    assert await tokens_of(BUNDLED, {"device": "cpu"}, "17", said.append) == 17
    assert not said
    assert await tokens_of(BUNDLED, {"device": "cpu"}, "2.5x", said.append) >= 1
    assert said
    for wrong in ("0", "x", "many", "-1x", "1.5"):
        with pytest.raises(ConfigError, match=r"--batch-tokens: need numbers, or multiples"):
            await tokens_of(BUNDLED, {"device": "cpu"}, wrong, said.append)
