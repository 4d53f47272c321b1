"""Another package called actors in front of ours, which nothing of ours can be imported without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.parametrize("command", [["-c", "import pipeline"], ["-m", "pipeline", "doctor"]])
def test_it_is_named_at_once(command: list[str], tmp_path: Path) -> None:
    other = tmp_path / "actors.py"
    other.touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    python = [sys.executable, "-P", *command]
    ran = subprocess.run(python, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: penstock needs its own package `actors`, and found {other}: uninstall")
