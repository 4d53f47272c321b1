"""Threads that wait spin little in our own processes, and in others a busy machine is told of."""

import logging
import os

import pytest

from pipeline import Model
from pipeline.cli import main
from pipeline.devices import spinning


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in spinning.SAYS_HOW:
        monkeypatch.setenv(name, "")  # so that it is put back, whatever a test leaves
        monkeypatch.delenv(name)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)


def run_a_command() -> None:
    main(["simulate", "--layers", "2", "--attn-ms", "1", "--ffn-ms", "1", "--attn-io-ms", "1", "--ffn-io-ms", "1"])


def test_commands_let_threads_spin_little() -> None:
    run_a_command()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_a_command()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(("load", "said", "told"), [(2.9, "", 0), (3.1, "", 1), (9.0, "ACTIVE", 0)])
async def test_a_busy_machine_is_told_of_once_when_a_model_is_opened(
    load: float, said: str, told: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spinning, "load_and_cores", lambda: (load, 4))
    if said:
        monkeypatch.setenv("OMP_WAIT_POLICY", said)
    with caplog.at_level(logging.WARNING, "penstock"):
        async with Model.open(device="cpu"):
            pass
    assert sum("set GOMP_SPINCOUNT=1000 before Python starts" in one.getMessage() for one in caplog.records) == told
