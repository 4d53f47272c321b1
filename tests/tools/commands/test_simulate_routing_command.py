"""`penstock simulate --routing`: what caches of experts would find, as a table, JSON and a picture."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.cli import main
from pipeline.tools.routing.hit_curves import SHOWN
from pipeline.tools.routing.recorded_routing import write_routing
from pipeline.tools.routing.replay_routing import REPLAYED, Wants, replay_routing
from tests.support.synthetic_routing import synthetic_routing


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_routing(tmp_path / "routing", synthetic_routing())
    return tmp_path / "routing"


def test_hit_rates_by_size_are_printed_and_drawn(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = file.with_name("curves.svg")
    command = ["simulate", "--routing", str(file), "--slots", "64,21", "--picture", str(picture)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    wants = Wants.of(synthetic_routing())
    alone = replay_routing(wants, [21], REPLAYED["lru"])
    assert (found["slots"], list(found["hit_rate"])) == ([21, 64], list(SHOWN))
    assert (found["hit_rate"]["lru"][0], found["read_per_token"]["lru"][0]) == (alone.hit_rate(), alone.read_per_token)
    own = replay_routing(wants, [21], REPLAYED["lru"], per_layer=True).hit_rate()
    assert found["hit_rate"]["lru per layer"][0] == own < alone.hit_rate()
    texts = [element.text for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {*SHOWN, "flat routing", "100 %"} <= set(texts)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "4 layers with 32 experts of 9.44 MB, of which a token uses 4" in printed
    assert re.search(rf"^21 +198 MB +{alone.hit_rate():.1%}", printed, re.MULTILINE)


def test_where_all_experts_have_slots_nothing_is_gained_by_sharing_them(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing has no sign: no table says -0.0."""
    assert main(["simulate", "--routing", str(file), "--slots", "128"]) == 0
    assert "in the mean +0.0 points against" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--routing", "FILE", "--layers", "3"], "--layers: has no meaning for recorded routing"),
        (["--routing", "FILE", "--slots", "many"], "--slots: need numbers, as 64,128,256; have 'many'"),
        (["--routing", "FILE", "--slots", "8,0"], "--slots: need numbers from 1 on, have 0"),
        (["--routing", "FILE.none"], "cannot be read"),
        (["--slots", "8"], "--slots: need --routing FILE"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    file: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *(one.replace("FILE", str(file)) for one in more)]) == 1
    assert message in capsys.readouterr().err


def test_simulating_needs_no_torch(file: Path) -> None:
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        f"main(['simulate', '--routing', {str(file)!r}, '--slots', '9', '--json'])\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == "False"


def test_prompts_alone_have_no_hit_rate(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_routing(file, synthetic_routing(tokens=0))
    assert main(["simulate", "--routing", str(file)]) == 1
    assert "holds prompts alone" in capsys.readouterr().err
