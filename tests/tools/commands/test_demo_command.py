"""`penstock demo`: five actors at work, and what their work is worth."""

import dataclasses
import re

import pytest
from support.cases import EVERYTHING

from pipeline.cli import main
from pipeline.tools.bench.candidates import Samples
from pipeline.tools.bench.policy_runs import OutputsDiffer
from pipeline.tools.commands import demo
from pipeline.tools.commands.demo import INT4, Shown, compared


def test_demo_shows_five_actors_at_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown, others = (demo.NEW_TOKENS, demo.COMPARED_TOKENS) if EVERYTHING else (24, 20)
    monkeypatch.setattr(demo, "NEW_TOKENS", shown)
    monkeypatch.setattr(demo, "COMPARED_TOKENS", others)
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "groups     at most 4 on the device" in out, "and move in every pass"
    assert re.search(r"^window     2\.\d+ MB for 15\.9 MB of weights$", out, re.MULTILINE)
    device = re.search(r"device +([\d.]+) MB  of ", out)
    assert device is not None
    assert float(device[1]) < 15.9, "the device has less than the model, all told"
    rows = {line.split("▕")[0].strip(): line.split("▕")[1] for line in out.splitlines() if "▕" in line}
    assert list(rows) == ["prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler"]
    assert "█" in rows["disk_reader"]
    assert "█" in rows["compute_scheduler"]
    assert "░" in rows["prefetch_planner"], "backpressure reaches the planner"
    rows_of_table = r"^(as above,?|one group|all may stay) .*? (\d+) +(\S+ k?M?B) +(\d+) +\d+\.\d+ .*?(\d+ of \d+)$"
    *table, int4 = re.findall(rows_of_table, out, re.MULTILINE)
    assert table == [
        ("as above", "24", "15.9 MB", "4", f"{shown} of {shown}"),
        ("one group", "24", "15.9 MB", "1", f"{others} of {others}"),
        ("all may stay", "0", "0 B", "0", f"{others} of {others}"),
    ]
    assert int4[:4] == ("as above,", "32", "5.66 MB", "4")
    assert 1 < int(int4[4].removesuffix(f" of {others}")) < others, "the weights are others"
    verdict = re.search(r"takes (.*)% longer, (more than|which proves nothing beside) the (.*)% of both spreads", out)
    assert verdict is not None, out
    beyond = float(verdict[1]) - float(verdict[3])
    assert (verdict[2] == "more than") == (beyond > 0) or abs(beyond) < 0.2, "what is printed is rounded"


def test_the_demo_tells_an_effect_from_noise_and_refuses_other_tokens() -> None:
    above = Shown("as above", 24, 10, 4, Samples((1.0, 1.1, 1.2)), [1, 2, 3])
    alone = Shown("one group at a time", 24, 10, 1, Samples((2.0, 2.2, 2.4)), [1, 2])
    assert compared([above, alone]).endswith("takes 100.0% longer, more than the 9.1% of both spreads.")
    noisy = dataclasses.replace(alone, passes=Samples((0.1, 1.2, 9.0)))
    assert "takes 9.1% longer, which proves nothing beside the 190.0% of both spreads; run" in compared([above, noisy])
    still = compared([dataclasses.replace(above, moving_groups=0), alone])
    assert "Nothing moved in as above: all weight groups stayed in memory" in still
    wrong = dataclasses.replace(alone, token_ids=[1, 5])
    with pytest.raises(OutputsDiffer, match=r"one group at a time: need the tokens \[1, 2\] .* have \[1, 5\]"):
        compared([above, wrong])
    assert "1 of 2" in compared([above, alone, dataclasses.replace(wrong, name=INT4)])
