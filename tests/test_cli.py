"""The command line, as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main

BUNDLED = Path(__file__).parent.parent / "pipeline" / "bundled"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tiny"
    sizes = ["--layers", "3", "--hidden-size", "64", "--ffn-size", "128", "--heads", "4", "--kv-heads", "2"]
    assert main(["make-checkpoint", str(out), "--like", "llama-3-8b", *sizes, "--vocabulary-size", "2048"]) == 0
    return out


@pytest.mark.usefixtures("everything_moves")
def test_run_streams_text_and_says_what_bound_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(BUNDLED), "--prompt", "import os\n", "--max-new-tokens", "12", "--gpu-groups", "2"]) == 0
    told = capsys.readouterr().err
    assert re.search(r"passes +12 in", told)
    assert re.search(r"read +.*/s, 1\.0\d\d x needed", told)
    assert re.search(r"groups +at most 2 on the device", told)
    assert re.search(r"bound by +(disk|compute|host-to-device link)", told)


def test_run_says_how_many_groups_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(BUNDLED), "--prompt", "import os\n", "--max-new-tokens", "2", "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert "groups     none move: all 24 stay in memory, unless --no-residency" in told
    assert re.search("^read  .* [kM]?B; what stays is read once$", told, re.MULTILINE), "which has no rate"


def test_make_checkpoint_then_run_and_bench(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(made), "--prompt", "hello", "--max-new-tokens", "3"]) == 0
    capsys.readouterr()
    trace = made / "trace"
    assert main(["bench", "pass", str(made), str(made.parent), "--passes", "3", "--json", "--trace", str(trace)]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert trace.exists(), "what is complete is told and written, whatever ends the rest"
    floors = zip(*(report[f"{name}_floor_seconds"] for name in ("read", "upload", "compute")), strict=True)
    ratios = [one / max(three) for one, three in zip(report["pass_seconds"], floors, strict=True)]
    assert report["ratios"] == pytest.approx(ratios)
    assert len(ratios) == 3
    assert (report["model"], report["tokens"]) == (made.name, 1)
    assert 0.98 < report["read_bytes_per_pass"] / report["needed_bytes_per_pass"] < 1.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nowhere", "--prompt", "x"], "nowhere: no such folder"),
        (["run", str(BUNDLED), "--prompt", "x", "--gpu-groups", "0"], "gpu_groups: need a whole number"),
        (["run", str(BUNDLED), "--prompt", "x", "--max-new-tokens", "99999"], "it was made for 1024"),
        (["bench", "pass", str(BUNDLED), "--batch-tokens", "1,0x"], "--batch-tokens: need numbers, or multiples"),
        (["bench", "pass", str(BUNDLED), "--passes", "0"], "--passes: need at least 1, have 0"),
        (["make-checkpoint", "x", "--like", "llama-3-8b", "--seed", "-1"], "seed"),
        (["make-checkpoint", str(BUNDLED / "config.json" / "x"), "--like", "llama-3-8b"], "config.json"),
        (["make-checkpoint", "x", "--like", "llama-9"], "llama-9"),
    ],
)
def test_errors_are_one_line_and_status_one(
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main(arguments)
    err = capsys.readouterr().err
    assert status == 1
    assert "penstock: " in err
    assert says in err
    assert "Traceback" not in err


def test_a_source_tree_runs_uninstalled() -> None:
    code = "import importlib.metadata as m; m.version = lambda n: (_ for _ in ()).throw(m.PackageNotFoundError(n))"
    code += "; from pipeline.cli import main; main(['--version'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("penstock from a source tree")
