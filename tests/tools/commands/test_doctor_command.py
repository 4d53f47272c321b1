"""`penstock doctor` as people use it: its lines, its JSON, its exit status, and what it refuses."""

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.api import BUNDLED
from pipeline.cli import main
from pipeline.tools.commands.doctor import lines
from pipeline.tools.doctor import machine, outputs
from pipeline.tools.doctor.check import Check
from pipeline.tools.doctor.names import OURS

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(autouse=True)
def a_sound_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and a path without others of our names: one folder of the tests is named actors."""
    others = {place.parent for name in OURS for entry in sys.path for place in Path(entry).resolve().glob(name)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() not in others - {ROOT}])


def test_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    checks = [line for line in captured.out.splitlines() if line[0] != " "]
    assert len(checks) == 11
    assert all(re.match(r"(good|note)  [a-z ]{13}  \S", line) for line in checks)
    assert f"  torch          {torch.__version__}, " in captured.out
    assert captured.err.splitlines()[0] == "checking the machine"


def test_what_to_do_stands_below() -> None:
    told = lines([Check("uvloop", "note", "not here\nand more", "get it"), Check("names", "good", "ours")])
    assert told.splitlines() == [
        "note  uvloop         not here and more",
        "                     -> get it",
        "good  names          ours",
    ]


def test_something_bad_is_told_and_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("")
    assert main(["doctor", "--json"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["bad"] == ["names"]
    assert {check["name"]: check["verdict"] for check in told["checks"]}["names"] == "bad"
    assert captured.err.splitlines()[-1] == "penstock: 1 of 11 checks is bad"


def test_deep_compares_three_runs(capsys: pytest.CaptureFixture[str]) -> None:
    level = logging.getLogger("penstock").level
    assert main(["doctor", "--deep", str(BUNDLED), "--device", "cpu-copy", "--dtype", "float32", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert [check["name"] for check in told["checks"]][-3:] == ["streamed", "resident", "one group"]
    assert {check["verdict"] for check in told["checks"][-3:]} == {"good"}
    assert "16 tokens, float32 on cpu" in told["checks"][-3]["found"]
    assert "all 24 groups stay" in told["checks"][-2]["found"]
    assert "streamed: opening the model" in captured.err
    assert "penstock: " not in captured.err, "no warning thrice"
    assert logging.getLogger("penstock").level == level


def test_deep_fails_when_outputs_differ(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def differ(folder: Path, settings: dict[str, Any], say: Callable[[str], None]) -> list[Check]:
        assert (folder, settings) == (BUNDLED, {"device": "cpu", "host_memory": "6GB"})
        say("resident: token 3 of 16")
        return [Check("streamed", "good", "16 tokens"), Check("resident", "bad", "differs", "report it")]

    monkeypatch.setattr(outputs, "check_outputs", differ)
    assert main(["doctor", "--deep", str(BUNDLED), "--device", "cpu", "--host-memory", "6GB"]) == 1
    captured = capsys.readouterr()
    assert captured.out.endswith("bad   resident       differs\n                     -> report it\n")
    assert "resident: token 3 of 16\n" in captured.err
    assert captured.err.endswith("penstock: 1 of 13 checks is bad\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--deep", "nowhere"], "nowhere: no such folder; need a folder with model.safetensors"),
        (["--device", "cpu"], "device: says how a model is run, so it needs --deep MODEL"),
        (["--host-memory", "1GB"], "host_memory: says how a model is run"),
    ],
)
def test_what_can_never_work_is_refused_at_once(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"penstock: {says}")
    assert captured.out == ""


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "xpu"], "device: unknown value 'xpu'"),
        (["--device", "cpu", "--host-memory", "1MB"], "host memory: need"),
    ],
)
def test_a_model_that_cannot_be_opened_takes_no_other_line_away(
    arguments: list[str], says: str, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--deep", str(BUNDLED), *arguments, *["--json"] * as_json]) == 1
    captured = capsys.readouterr()
    assert f"penstock: {says}" in captured.err
    if as_json:
        assert len(json.loads(captured.out)["checks"]) == 11
    else:
        assert len(captured.out.splitlines()) >= 10


def test_a_broken_torch_is_told_and_not_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "check_torch", lambda: __import__("no_such_library"))
    monkeypatch.setitem(sys.modules, "pipeline.tools.doctor.outputs", None)
    assert main(["doctor", "--deep", str(BUNDLED)]) == 1
    captured = capsys.readouterr()
    assert "bad   torch          ModuleNotFoundError: No module named 'no_such_library'" in captured.out
    assert "bad   outputs        ModuleNotFoundError: import of pipeline.tools.doctor.outputs halted" in captured.out
    assert "Traceback" not in captured.err
