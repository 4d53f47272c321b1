"""`penstock doctor` on a GPU: checks that need one, and outputs that do not depend on where weights lie."""

from pathlib import Path

import pytest
from support import tiny_models

from pipeline.cli import main
from pipeline.tools.doctor.outputs import RUNS, check_outputs

pytestmark = pytest.mark.cuda
LAYERS = 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_where_weights_lie_changes_no_bit(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint: Path = tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)
    checks = await check_outputs(checkpoint, {"device": "cuda", "dtype": dtype}, lambda text: None)
    assert [(check.name, check.verdict) for check in checks] == [(name, "good") for name in RUNS]
    streamed, resident, one = (check.found for check in checks)
    assert f"{dtype} on cuda" in streamed
    assert "none of 8 groups stays" in streamed
    assert "tokens and log-probabilities bit for bit" in resident
    assert "all 8 groups stay" in resident
    assert "tokens and log-probabilities bit for bit" in one


def test_the_machine_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "copied to the GPU at" in capsys.readouterr().out, "so memory was really pinned"
