"""Commands that measure say in one sentence when nothing moved, and which option lets it."""

from pathlib import Path

import pytest

import pipeline.tools.bench.opening as opening
import pipeline.tools.commands.bench_pass as bench_pass
from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.tools.commands.remarks import below_floor, nothing_moved


def test_rows_in_which_nothing_moved_are_named_once() -> None:
    told = nothing_moved({"small": 0, "large": 3, "tiny": 0}, "the disk tells nothing")
    assert told == (
        "Nothing moved in small, tiny: all weight groups stayed in memory, so the disk tells nothing. "
        "--no-residency lets all of them move, a smaller --host-memory or --gpu-memory some."
    )
    assert nothing_moved({"large": 3}, "the disk tells nothing") == ""


def test_a_pass_that_is_faster_than_its_floor_is_not_believed() -> None:
    told = below_floor({"small": 0.6, "large": 0.96, "tiny": 0.94})
    assert told.startswith("The pass of small, tiny is faster than its floor: ")
    assert below_floor({"large": 0.96, "slow": 2.0}) == ""


async def two_tokens(*_: object) -> int:
    return 2


@pytest.mark.parametrize(
    "command",
    [
        ["pass", "--passes", "1", "--batch-tokens", "2x"],
        ["open", "--passes", "1", "--rounds", "1"],
        ["throughput", "--requests", "1", "--prompt-tokens", "2", "--new-tokens", "2"],
    ],
    ids=lambda command: command[0],
)
def test_a_bench_of_a_model_that_fits_says_so(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(bench_pass, "tokens_of", two_tokens)  # measuring for the balance takes seconds
    what, *options = command
    for more, still in ([], True), (["--no-residency"], False):
        assert main(["bench", what, str(BUNDLED), *options, "--device", "cpu", *more]) == 0
        out = capsys.readouterr().out
        assert ("\n\nNothing moved in bundled: " in out) == still
        assert ("1x, are multiples of one token." in out) == (still and what == "pass")


def test_a_report_of_a_model_that_fits_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, page = str(tmp_path / "trace.json"), str(tmp_path / "page.html")
    for more, still in ([], True), (["--no-residency"], False):
        run = ["run", str(BUNDLED), "--prompt", "x", "--max-new-tokens", "2", "--device", "cpu", "--trace", trace]
        assert main([*run, *more]) == 0
        capsys.readouterr()
        assert main(["report", trace, "-o", page]) == 0
        said = "All weight groups stay in memory, so none of them moves; residency=False lets them."
        assert (said in capsys.readouterr().out) == still
    assert main(["report", trace, "-o", f"{tmp_path}/../{tmp_path.name}/trace.json"]) == 1
    assert "trace.json is the trace; give the page another name" in capsys.readouterr().err
