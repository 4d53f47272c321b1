"""`penstock simulate --sections`: what several devices or nodes make of a pass, as a table, JSON and a picture."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.cli import main

STREAMED = ("--layers", "16", "--attn-ms", "1", "--ffn-ms", "4", "--attn-io-ms", "20", "--ffn-io-ms", "80")
SLOTS = ("--gpu-groups", "4")
MODEL = ("--model", "llama-3-70b", "--layers", "8", "--disk-gbps", "7", "--h2d-gbps", "50", "--tflops", "400")


def rows(capsys: pytest.CaptureFixture[str], sections: int, *arguments: str) -> Any:
    assert main(["simulate", "--sections", str(sections), *SLOTS, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_powers_of_two_and_the_number_itself(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, 6, *STREAMED)
    assert [row["sections"] for row in found] == [1, 2, 4, 6]
    assert found[0] == {"sections": 1, "hops": 0} | dict.fromkeys(
        ("dealt", "formula", "contiguous", "in_flight"), pytest.approx(1.6, rel=1e-6)
    )
    for row in found[:3]:
        assert row["dealt"] == pytest.approx(1.6 / row["sections"], rel=0.01)
        assert row["formula"] == pytest.approx(row["dealt"], rel=0.02)
        assert row["in_flight"] == pytest.approx(1.6, rel=0.02)
    for row in found[1:3]:  # what the slots of each section hold has come when the pass does
        assert row["contiguous"] == pytest.approx(1.6 - row["sections"] * 0.195, rel=0.02)


def test_the_table_has_them_and_says_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--shards", "2", *SLOTS, *STREAMED]) == 0
    table, said = capsys.readouterr().out.split("\n\n")
    *_, two = table.splitlines()
    assert two.split()[:5] == ["2", "16", "800.00", "800.00", "2.00x"]
    assert "passes in flight: contiguous layers" in said


def test_options_reach_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    _, hop = rows(capsys, 2, *STREAMED, "--hop-seconds", "0.03")
    assert hop["contiguous"] - 2 * 0.03 == pytest.approx(1.6 - 2 * 0.195, rel=0.02)
    assert hop["dealt"] == pytest.approx(hop["formula"], rel=0.02)
    _, half = rows(capsys, 2, *STREAMED, "--stays", "0.25")
    assert half["dealt"] == pytest.approx(0.4, rel=0.02)
    disk = ("--disk-attn-ms", "20", "--disk-ffn-ms", "80", "--attn-io-ms", "1", "--ffn-io-ms", "4")
    _, own = rows(capsys, 2, *STREAMED, *disk)
    _, shared = rows(capsys, 2, *STREAMED, *disk, "--shared-disk")
    assert (own["dealt"], shared["dealt"]) == (pytest.approx(0.8, rel=0.02), pytest.approx(1.6, rel=0.02))


def test_a_model_reads_its_weights_from_memory_whatever_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    """Where all stays: passes in flight share computing, but of few tokens each pass reads all weights once."""
    few = rows(capsys, 2, *MODEL, "--memory-gbps", "4000", "--batch-tokens", "64", "--stays", "1")
    many = rows(capsys, 2, *MODEL, "--memory-gbps", "4000", "--batch-tokens", "4096", "--stays", "1")
    assert few[1]["dealt"] == pytest.approx(8 * 2 * (150.995e6 + 704.643e6) / 4e12, rel=0.01)
    assert few[1]["in_flight"] == pytest.approx(few[1]["dealt"], rel=0.01)
    assert many[1]["in_flight"] == pytest.approx(many[1]["dealt"] / 2, rel=0.05)
    _, one = rows(capsys, 2, *MODEL, "--batch-tokens", "1")
    assert one["in_flight"] == one["contiguous"], "a single token is in one pass"


def test_the_picture_has_a_curve_for_each(tmp_path: Path) -> None:
    picture = tmp_path / "sections.svg"
    assert main(["simulate", "--sections", "4", *SLOTS, *STREAMED, "--picture", str(picture)]) == 0
    root = ElementTree.parse(picture).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"layers dealt", "contiguous", "contiguous, passes in flight", "sections", "times as fast"} <= set(texts)
    curves = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if "curve" in path.get("class", "")]
    assert len(curves) == 3 + 1 + 3  # three keys, and the line of as many times faster


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "0"], "--sections: need a whole number from 1 to 65536, have 0"),
        (["--sections", "9", "--layers", "8"], "--sections: need at most one for each layer, have 9 for 8 layers"),
        (["--sections", "2", "--layers", "40000"], "--layers: need at most 50000 times --sections, have 40000 x 2"),
        (["--sections", "2", "--hop-seconds", "-1"], "--hop-seconds: need a finite number from 0, have -1.0"),
        (["--sections", "2", "--stays", "1.5"], "--stays: need a share from 0 to 1, have 1.5"),
        (["--sections", "2", "--shared-disk"], "--shared-disk: need a disk hop, have none"),
        (["--sections", "2", "--passes", "3"], "--passes: has no meaning for sections; leave it out"),
        (["--sections", "2", "--kv-ms", "3"], "--kv-ms: has no meaning for sections; leave it out"),
        (["--sections", "2", "--slots", "3"], "--slots: need --routing FILE, have none"),
        (["--hop-seconds", "1"], "--hop-seconds: need --sections N, have none"),
        (["--shared-disk"], "--shared-disk: need --sections N, have none"),
        (["--picture", "x.svg"], "--picture: need --sections N or --routing FILE, have neither"),
        (["--memory-gbps", "1"], "--memory-gbps: is for --model, which is missing"),
        (["--sections", "2", *MODEL, "--batch-tokens", "1", "--memory-gbps", "0"], "--memory-gbps: need a finite"),
        (["--sections", "2", "--picture", "nowhere/x.svg"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *arguments]) == 1
    assert message in capsys.readouterr().err
