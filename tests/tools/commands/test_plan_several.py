"""`penstock plan` for several devices and for several nodes: figures that follow from sizes and rates, and refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.api import BUNDLED
from pipeline.checkpoints.config_alone import config_alone
from pipeline.cli import main
from pipeline.engine.dealing import hops

pytestmark = pytest.mark.usefixtures("short_measurements", "nothing_was_there_before")
MODEL = "llama-3.2-1b"
NODE = ("--disk-gbps", "2", "--tflops", "2", "--memory-gbps", "60", "--set", "max_requests=4")
GPU = ("--disk-gbps", "2", "--tflops", "50", "--memory-gbps", "900", "--h2d-gbps", "10", "--set", "max_requests=4")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_nodes_divide_the_bytes_and_add_up_their_disks_until_all_stays(capsys: pytest.CaptureFixture[str]) -> None:
    alone = config_alone(Path(MODEL))
    assert alone is not None
    moved = sum(one.length for one in alone.checkpoint.tensors.values())  # the head is tied to the embedding
    found = told(capsys, MODEL, "--nodes", "3", "--host-memory", "1200MB", *NODE)["nodes"]
    assert [one["nodes"] for one in found] == [1, 2, 3, 4, 8, 16]
    seconds = [one["one_request"]["pass_seconds"] for one in found]
    assert seconds[0] == pytest.approx((1 - found[0]["staying_share"]) * moved / 2e9, rel=0.01)
    second = found[1]
    assert second["one_request"]["binds"] == "disk"
    assert seconds[1] == pytest.approx((1 - second["staying_share"]) * moved / 2 / 2e9, rel=0.12), "of 8 or 9 layers"
    assert seconds[0] / seconds[1] > 2.5, "more than twice, as more of it stays"
    assert found[-1]["staying_share"] == 1
    whole = found[-1]["one_request"]
    assert len({one["one_request"]["resource_seconds"]["compute"] for one in found}) == 1, "however it is cut"
    assert whole["binds"] == "compute"
    assert whole["hops"] == 16
    computing = moved / 60e9
    assert whole["resource_seconds"]["compute"] == pytest.approx(computing, rel=0.01)
    assert whole["pass_seconds"] == pytest.approx(computing + 16 * 1.1e-3, rel=0.02)
    many = found[-1]["many_requests"]
    assert many["tokens_per_pass"] == 4
    assert many["tokens_per_second"] == pytest.approx(4 / many["pass_seconds"])


def test_a_forecast_without_the_rate_of_memory_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    node = (MODEL, "--nodes", "2", "--host-memory", "4GB", "--disk-gbps", "2", "--tflops", "2")
    assert main(["plan", *node]) == 0
    assert "left out   reading weights from memory (say --memory-gbps), KV blocks" in capsys.readouterr().out
    assert main(["plan", *node, "--memory-gbps", "60"]) == 0
    assert "left out   KV blocks that move, and prompts\n" in capsys.readouterr().out


def test_dear_hops_make_nodes_slower_and_few_of_them_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    streaming = ("--nodes", "2", "--host-memory", "1200MB", *NODE)
    rows = [told(capsys, MODEL, *streaming, "--hop-seconds", str(hop))["nodes"][1] for hop in (0.001, 0.05, 1)]
    taken = [one["one_request"]["hops"] for one in rows]
    assert taken[0] > taken[1] >= taken[2] == 2
    seconds = [one["one_request"]["pass_seconds"] for one in rows]
    assert seconds == sorted(seconds)


def test_nodes_with_experts_wait_for_those_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "mixtral-8x7b", "--nodes", "4", "--host-memory", "24GB", *NODE)["nodes"]
    assert [one["nodes"] for one in found] == [1, 2, 4, 8, 16]
    waits = [one["one_request"]["resource_seconds"]["experts"] for one in found]
    assert waits[0] > 2 * waits[2] > 0, "four nodes keep more of them"
    for one in found[:3]:
        passed = one["one_request"]
        on_the_way = sum(passed["resource_seconds"].get(name, 0) for name in ("compute", "experts", "hops"))
        assert passed["pass_seconds"] >= 0.999 * on_the_way


def test_nodes_are_told_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", MODEL, "--nodes", "2", "--host-memory", "600MB", *NODE, "--set", "gpu_groups=1"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^nodes      2, each with 600 MB of host memory · disk 2 GB/s; a hop to the next takes 0.0011 s", out, re.M
    )
    assert re.search(
        r"^dealt      layers in turn, (one|up to \d) at a time, \d to a node, \d+% of whose bytes are in its memory$",
        out,
        re.M,
    )
    assert re.search(r"^2 +[0-9.]+ +disk +4 +[0-9.]+ +disk +\d+% +\d+$", out, re.M)
    assert len(re.findall(r"^binds      disk: disk [0-9.]+ s · compute [0-9.]+ s · hops [0-9.]+ s$", out, re.M)) == 2


def test_nodes_that_lack_memory_are_told_how_many_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    tight = ("--set", "kv_tokens=65536", "--set", "context_tokens=1024", "--host-memory", "1200MB", *NODE)
    assert main(["plan", MODEL, "--nodes", "1", *tight]) == 1
    assert re.search(
        r"--nodes: each of 1 lacks host memory: need .*; [248] nodes would do$", capsys.readouterr().err, re.M
    )
    assert main(["plan", MODEL, "--nodes", "8", *tight]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^1 +- +- +- +- +- +- +-$", out, re.M)
    assert re.search(r"^1 node: host memory: need .*, have 1.2 GB$", out, re.M)


def test_devices_that_are_not_here_are_planned_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    two = ("--devices", "cuda:0,cuda:1", "--host-memory", "9GB", "--gpu-memory", "900MB", *GPU)
    found = told(capsys, MODEL, *two)
    first, second = found["sections"]
    assert (first["device"], second["device"]) == ("cuda:0", "cuda:1")
    assert sorted(first["layers"] + second["layers"]) == list(range(16))
    assert first["has_head"] != second["has_head"]
    assert first["memory"]["host"]["have_bytes"] == 4_500_000_000
    assert first["memory"]["device"]["have_bytes"] == 900_000_000
    sent = max(one["moving_bytes_per_pass"]["device"] for one in (first, second))
    assert found["binds"] == "H2D"
    assert found["pass_seconds"] == pytest.approx(sent / 10e9)
    assert found["one_device"]["pass_seconds"] > 1.8 * found["pass_seconds"]
    owners = [int(layer in second["layers"]) for layer in range(16)]
    assert hops(owners) >= 8, "dealt in turn"
    assert main(["plan", MODEL, *two]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^one alone  [0-9.]+ s per pass of 1 token · .* tokens/s, [0-9.]+ x as long$", out, re.M)
    assert re.search(r"^cuda:1 +\d+( and the head)? +[0-9.]+ MB ", out, re.M)
    assert re.search(
        r"^dealt      layers in turn, .*, by the rates below, and 0.1 ms for a hop \(assumed\); host", out, re.M
    )


def test_devices_here_are_measured_and_without_weights_planned(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, str(BUNDLED), "--devices", "cpu-copy,cpu-copy", "--no-residency")
    assert found["pass_seconds"] > 0
    assert {*found["resource_seconds"]} == {"disk", "H2D", "compute", "hops"}
    assert main(["plan", MODEL, "--devices", "cpu,cpu", "--host-memory", "8GB"]) == 0
    out = capsys.readouterr().out
    assert "forecast   none: without weights nothing can be measured here" in out
    assert "by assumed rates, disk 4 GB/s and H2D 16 GB/s, and 0.1 ms for a hop (assumed)" in out
    assert re.search(r"^cpu +\d+ and the head +", out, re.M)


def test_too_many_nodes_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.tools.commands.plan_several.measure_rates", lambda *_: 1 / 0)
    for count in ("0", "99"):
        assert main(["plan", str(BUNDLED), "--nodes", count]) == 1
        assert f"layers of the model, have {count}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--nodes", "0", "--host-memory", "4GB", *NODE],
            "--nodes: need a number from 1 to the 16 layers of the model, have 0",
        ),
        (["--nodes", "17", "--host-memory", "4GB", *NODE], "--nodes: need a number from 1 to the 16 layers"),
        (["--nodes", "2"], "--nodes: without weights nothing can be measured here; give --disk-gbps"),
        (["--nodes", "2", *NODE], "--host-memory: a machine that is not here needs it too"),
        (["--nodes", "2", "--devices", "cpu,cpu", "--host-memory", "4GB", *NODE], "--nodes: each has one device here"),
        (
            ["--nodes", "2", "--batch-tokens", "3", "--host-memory", "4GB", *NODE],
            "--batch-tokens: passes over nodes carry",
        ),
        (["--nodes", "2", "--hop-seconds", "0", "--host-memory", "4GB", *NODE], "--hop-seconds: need a number above 0"),
        (["--hop-seconds", "1"], "--hop-seconds: is from one node to the next; say --nodes too"),
        (["--devices", "all", "--host-memory", "4GB", *NODE], "--devices: of a machine that is not here name each"),
        (
            ["--devices", "cuda:0,cuda:1", "--host-memory", "4GB", *NODE],
            "--h2d-gbps: GPUs that are not here need it too",
        ),
        (["--devices", "cpu,cpu", "--check", "1"], "--check: runs passes on one device"),
        (["--devices", "cpu,cuda"], "devices: need devices of one kind"),
    ],
    ids=str,
)
def test_what_can_never_work_is_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", MODEL, *arguments]) == 1
    assert says in capsys.readouterr().err
