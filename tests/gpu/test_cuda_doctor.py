"""`penstock doctor` on a GPU: checks that need one, and outputs that do not depend on where weights lie."""

from pathlib import Path

import pytest
from support import quantised_models, tiny_models

from pipeline.cli import main
from pipeline.tools.doctor.definitions import check_decoding
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


@pytest.mark.parametrize("name", ["ct int4", "awq", "gptq, head", "fp8 blocks, head", "ct mxfp4", "nf4 nested"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_the_gpu_decodes_as_defined(name: str, dtype: str, tmp_path: Path) -> None:
    quantised_models.save(quantised_models.FORMATS[name], "llama", tmp_path)
    (check,) = await check_decoding(tmp_path, {"device": "cuda", "dtype": dtype}, lambda text: None)
    assert check.verdict == "good", check.found


def test_the_machine_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert " pinned in " in capsys.readouterr().out, "so memory was really pinned"
