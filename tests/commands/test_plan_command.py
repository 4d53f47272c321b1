"""`penstock plan` as people use it: what it prints, its JSON, a machine that is not here, and what it refuses."""

import json
import re

import pytest

from pipeline.api import BUNDLED
from pipeline.cli import main

ELSEWHERE = ("--disk-gbps", "2", "--tflops", "50", "--host-memory", "4GB")


def plan(*arguments: str) -> int:
    return main(["plan", str(BUNDLED), *arguments])


def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--device", "cpu-copy", "--batch-tokens", "2", "--no-residency") == 0
    captured = capsys.readouterr()
    assert re.search(r"^machine +disk .*/s · H2D .*/s$", captured.out, re.M)
    assert re.search(r"^forecast +[0-9.]+ s per pass of 2 tokens · [0-9.]+ tokens/s$", captured.out, re.M)
    assert re.search(
        r"^binds +(disk|H2D|compute): disk [0-9.]+ s · H2D [0-9.]+ s · compute [0-9.]+ s$", captured.out, re.M
    )
    assert "otherwise  8 tokens per pass: " in captured.out
    assert "reading alone" in captured.err


def test_a_forecast_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--device", "cpu", "--no-residency", "--check", "3", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["measured_seconds"]) == 3
    assert 0.1 < told["pass_seconds"] / min(told["measured_seconds"]) < 10
    assert plan("--device", "cpu", "--check", "1", "--batch-tokens", "3") == 0
    assert re.search(
        r"^measured +[0-9.]+ s per pass \(.*\): the forecast is [+-].*% off$", capsys.readouterr().out, re.M
    )


def test_as_json_for_a_machine_with_a_gpu_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*ELSEWHERE, "--h2d-gbps", "4", "--gpu-memory", "180MB", "--memory-gbps", "1000", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["h2d_bytes_per_second"] == 4e9
    assert told["memory"]["device"]["have_bytes"] == 180_000_000
    assert told["resource_seconds"]["disk"] == pytest.approx(told["read_bytes_per_pass"] / 2e9)
    assert told["kv_room"]["nbytes"] > 1e6
    assert told["pass_seconds"] >= max(told["resource_seconds"].values())
    assert told["tokens_per_second"] == pytest.approx(1 / told["pass_seconds"])


def test_without_a_gpu_there_is_no_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*ELSEWHERE, "--no-residency") == 0
    out = capsys.readouterr().out
    assert "H2D" not in out
    assert re.search(
        r"^kv room +[0-9,]+ tokens in [0-9.]+ MB: .*\(max_requests\).*; no more weights move for it$", out, re.M
    )
    assert "otherwise  what fits stays: " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--check", "0"], "--check: need at least 1 pass"),
        ([*ELSEWHERE, "--check", "2"], "--check: need at least 1 pass, and the machine here"),
        (["--batch-tokens", "0"], "--batch-tokens: need a number from 1 to 65536, have 0"),
        (["--disk-gbps", "1", "--host-memory", "4GB"], "--tflops: a machine that is not here needs it"),
        (["--tflops", "1", "--host-memory", "4GB"], "--disk-gbps: a machine that is not here needs it"),
        (["--disk-gbps", "1", "--tflops", "1"], "--host-memory: a machine that is not here needs it"),
        (["--disk-gbps", "1", "--tflops", "1", "--host-memory", "80%"], "--host-memory: a machine that is not here"),
        ([*ELSEWHERE, "--h2d-gbps", "1"], "--gpu-memory: a machine that is not here needs it"),
        ([*ELSEWHERE, "--h2d-gbps", "0", "--gpu-memory", "1GB"], "--h2d-gbps: need a number above 0"),
        ([*ELSEWHERE, "--h2d-gbps", "1", "--gpu-memory", "1MB"], "device memory: need"),
        (["--host-memory", "1MB", "--device", "cpu"], "host memory: need"),
    ],
    ids=str,
)
def test_what_can_never_work_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*arguments) == 1
    assert says in capsys.readouterr().err
