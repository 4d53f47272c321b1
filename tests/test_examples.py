"""Every example runs as a user runs it, and stays short."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))
SAYS = {
    "01_generate": "-- 48 tokens, finished by length",
    "02_stream": "-- finished by",
    "03_concurrent_requests": "-- 32 requests, 512 tokens in 16 passes",
    "04_tune_queues": "gpu_groups  queue",
    "05_custom_stage": "24 groups were the same in all 8 passes",
    "06_simulate": "-- stage3 is the fastest",
    "07_own_policy": "the same text in both",
}
ALONE = ["01_generate", "06_simulate"]
"""Run in a process of their own, which takes seconds to begin; the others run in that of the tests."""


def test_there_are_examples_for_everything_that_is_said() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(SAYS)


@pytest.mark.usefixtures("what_fits_stays")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text().splitlines()) < 40
    if path.stem in ALONE:
        result = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert SAYS[path.stem] in result.stdout
    else:
        runpy.run_path(str(path), run_name="__main__")
        assert SAYS[path.stem] in capsys.readouterr().out
