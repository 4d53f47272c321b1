"""The deep check: equal where nothing is wrong, and the first token named where something is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.group_places import settings_with_groups

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import decoder
from pipeline.tools.doctor import outputs
from pipeline.tools.doctor.check import Check
from pipeline.tools.doctor.outputs import RUNS, check_outputs

LAYERS = 3
TOKENS = 4
CALLS = LAYERS * TOKENS
"""How often an ffn is computed for one answer."""
SHARES = {"cpu": (0.0, 0.25), "cpu-copy": (0.3, 0.3)}
"""Of all groups, on the device and in host memory. What moves through the slots has room beside."""


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "NEW_TOKENS", TOKENS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)


async def checked(checkpoint: Path, **settings: Any) -> dict[str, Check]:
    checks = await check_outputs(checkpoint, settings, lambda text: None)
    assert [check.name for check in checks] == list(RUNS)
    return {check.name: check for check in checks}


async def test_several_devices_say_the_same(checkpoint: Path) -> None:
    checks = await checked(checkpoint, devices="cpu,cpu")
    assert {check.verdict for check in checks.values()} == {"good"}
    assert "on cpu, cpu · read" in checks["streamed"].found


@pytest.fixture
def break_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Compute a little too much in all ffns from one call to another."""

    def apply(first: int, end: int) -> None:
        calls, ffn_half = 0, decoder.ffn_half

        def broken(*arguments: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            hidden_TD = ffn_half(*arguments)
            return hidden_TD.mul_(1.001) if first < calls <= end else hidden_TD

        monkeypatch.setattr(decoder, "ffn_half", broken)

    return apply


@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_all_runs_are_equal_and_all_groups_stay(device: str, checkpoint: Path) -> None:
    said: list[str] = []
    checks = await check_outputs(checkpoint, {"device": device}, said.append)
    assert {check.verdict for check in checks} == {"good"}
    streamed, resident, one = (check.found for check in checks)
    assert streamed.startswith("4 tokens, float32 on cpu · read ")
    assert "none of 8 groups stays" in streamed
    assert resident.startswith("equals streamed, tokens and log-probabilities bit for bit")
    assert "all 8 groups stay" in resident
    assert "none of 8 groups stays" in one
    assert [text for text in said if text.endswith("opening the model")] == [
        f"{name}: opening the model" for name in RUNS
    ]
    assert "streamed: token 1 of 4" in said[1]


@pytest.mark.usefixtures("nothing_was_there_before")
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_what_does_not_fit_is_counted(device: str, checkpoint: Path) -> None:
    settings = settings_with_groups(checkpoint, *SHARES[device], device=device)
    resident = (await checked(checkpoint, **settings))["resident"]
    assert resident.verdict == "good"
    assert any(f"{count} of 8 groups stay: " in resident.found for count in range(1, 8)), resident


async def test_what_happens_once_does_not_count_as_speed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, ffn_half = 0, decoder.ffn_half

    def slow_at_first(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        time.sleep(0.1 if calls <= 2 * LAYERS else 0.0)
        return ffn_half(*arguments)

    monkeypatch.setattr(decoder, "ffn_half", slow_at_first)
    streamed = (await checked(checkpoint, device="cpu"))["streamed"]
    assert calls > 2 * LAYERS
    assert float(streamed.found.split(" s per token")[0].split()[-1]) < 0.1, "the mean would be 0.15 or more"


@pytest.mark.usefixtures("everything_moves")
async def test_where_nothing_fits_nothing_was_compared(checkpoint: Path) -> None:
    resident = (await checked(checkpoint, device="cpu"))["resident"]
    assert resident.verdict == "note"
    assert "none of 8 groups stays" in resident.found


async def test_bytes_are_those_of_the_last_answer(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, outputs.Answer] = {}
    judged = outputs._judged
    monkeypatch.setattr(outputs, "_judged", lambda name, some: (answers.update(some), judged(name, some))[1])
    await checked(checkpoint, device="cpu")
    model_bytes = (checkpoint / "model.safetensors").stat().st_size
    assert answers["streamed"].read_bytes > (TOKENS - 2) * model_bytes
    assert answers["one group"].read_bytes > (TOKENS - 2) * model_bytes
    assert answers["resident"].read_bytes < model_bytes, "rows of the embedding only"
    assert all(answer.token_seconds > 0 for answer in answers.values())


@pytest.mark.parametrize(
    ("run", "answers_before", "token"), [("resident", 1, 1), ("resident", 2, 3), ("one group", 3, 4)]
)
async def test_a_run_that_computes_wrongly_is_bad(
    run: str, answers_before: int, token: int, checkpoint: Path, break_from: Callable[[int, int], None]
) -> None:
    first = answers_before * CALLS + (token - 1) * LAYERS
    break_from(first, first + LAYERS)
    checks = await checked(checkpoint, device="cpu")
    assert {name: check.verdict for name, check in checks.items()} == dict.fromkeys(RUNS, "good") | {run: "bad"}
    assert checks[run].found.startswith(f"differs from streamed at token {token} of 4: ")
    assert checks[run].to_do


async def test_when_the_first_run_is_wrong_all_others_differ(
    checkpoint: Path, break_from: Callable[[int, int], None]
) -> None:
    break_from(0, CALLS)
    checks = await checked(checkpoint, device="cpu")
    assert [check.verdict for check in checks.values()] == ["good", "bad", "bad"]
    assert "at token 1 of 4" in checks["one group"].found


async def test_a_run_that_fails_hides_no_other(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, ffn_half = 0, decoder.ffn_half

    def fails_twice(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (5, 6):  # once more when the line computes anew
            raise MemoryError("no more")
        return ffn_half(*arguments)

    monkeypatch.setattr(decoder, "ffn_half", fails_twice)
    checks = await checked(checkpoint, device="cpu")
    assert checks["streamed"].verdict == "bad"
    assert "no more" in checks["streamed"].found
    assert checks["one group"].verdict == "good"
    assert checks["one group"].found.startswith("equals resident")


async def test_what_can_never_be_opened_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        await checked(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="gpu_memory"):
        await checked(checkpoint, device="cpu", gpu_memory="1GB")


def test_floats_that_only_look_equal_differ() -> None:
    def told(value: float) -> tuple[outputs.Token, ...]:
        return ((5, ((5, value.hex()), (7, (-2.0).hex()))),)

    assert outputs._difference(told(-1.0), told(-1.0)) == ""
    assert outputs._difference(told(float("nan")), told(float("nan"))) == ""
    assert outputs._difference(told(0.0), told(-0.0)) == (
        "token 1 of 1: a log-probability of 0.0 for 5, not -0.0 for 5"
    )
    assert outputs._difference(((6, ()),), told(-1.0)) == "token 1 of 1: 6, not 5"
