"""Whether others use the cores, which makes torch's spinning threads slow."""

import pytest

from pipeline.doctor import machine


@pytest.mark.parametrize(
    ("load", "policy", "verdict"), [(0.5, "", "good"), (3.9, "", "note"), (3.9, "passive", "good")]
)
def test_busy_cores_are_told(load: float, policy: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    check = machine.check_cores()
    assert check.verdict == verdict
    assert f"{load} programs ran or waited for one of all 4" in check.found
