"""Whether others use the cores, which makes torch's spinning threads slow."""

import pytest

from pipeline.tools.doctor import machine


@pytest.mark.parametrize(("load", "verdict"), [(0.5, "good"), (3.9, "note")])
def test_busy_cores_are_told(load: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "load_and_cores", lambda: (load, 4))
    check = machine.check_cores()
    assert check.verdict == verdict
    assert f"{load} programs ran or waited for one of all 4" in check.found
