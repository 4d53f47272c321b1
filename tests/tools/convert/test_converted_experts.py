"""`penstock convert` of models with experts."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.converted_weights import decoded
from support.quantised_families import FAMILIES, VOCABULARY_SIZE

from pipeline import Model, Output
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.checkpoints.written_formats import written_format
from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.tools.convert.convert import convert

WEIGHTS, EXPERTS = "model.safetensors", 4
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_experts": EXPERTS}
OF_EXPERTS = {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}


def stacked(folder: Path, out: Path) -> Path:
    """A copy whose experts lie in one tensor, as Qwen3.5 has them."""
    shutil.copytree(folder, out)
    tensors = load_file(folder / WEIGHTS)
    for layer in (0, 2):
        module = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = (
            torch.stack([tensors.pop(f"{module}.{index}.{short}_proj.weight") for index in range(EXPERTS)])
            for short in ("gate", "up", "down")
        )
        tensors |= {f"{module}.gate_up_proj": torch.cat([gates, ups], 1), f"{module}.down_proj": downs}
    save_file(tensors, out / WEIGHTS)
    return out


async def answered(folder: Path) -> Output:
    async with Model.open(folder, device="cpu") as model:
        return await model.generate(tiny_models.PROMPT, max_new_tokens=8, ignore_eos=True, logprobs=VOCABULARY_SIZE)


def test_what_is_left_as_it_is_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_models.randomised(FAMILIES["qwen2_moe"](**SIZES, **OF_EXPERTS), seed=5)
    model.save_pretrained(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "fp8"]) == 0
    assert "but for embedding, router, shared_gate, norms and biases" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["int4", "fp8", "mxfp4"])
def test_experts_are_written_one_by_one_and_what_chooses_them_stays(name: str, tmp_path: Path) -> None:
    model, out = tiny_models.randomised(FAMILIES["qwen2_moe"](**SIZES, **OF_EXPERTS), seed=5), tmp_path / "out"
    model.save_pretrained(tmp_path / "in")
    changes = convert(tmp_path / "in", out, written_format(name))
    assert changes["router"].relative_error == changes["shared_gate"].relative_error == 0 < changes["up"].relative_error
    assert json.loads((out / "config.json").read_text())["quantization_config"]["ignore"] == [
        f"model.layers.{layer}.mlp.{module}" for layer in (0, 2) for module in ("gate", "shared_expert_gate")
    ]
    reference = type(model).from_pretrained(None, config=model.config, state_dict=decoded(name, out)).eval()
    expected = tiny_models.greedy(reference, tiny_models.PROMPT, 8)
    output = asyncio.run(answered(out))
    assert list(output.token_ids) == expected.token_ids
    for step, logprobs in enumerate(output.logprobs or ()):
        found = torch.tensor([logprobs[token_id] for token_id in range(VOCABULARY_SIZE)])
        torch.testing.assert_close(found, expected.logprobs[step], atol=1e-4, rtol=0)
    convert(stacked(tmp_path / "in", tmp_path / "stacked"), tmp_path / "again", written_format(name))
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()


def test_experts_that_nothing_reads_one_by_one_are_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "ffn_size": 64, "vocabulary_size": 300, "experts": 4, "layers": 1}
    make_checkpoint(tmp_path / "in", "gpt-oss-20b", **shape)
    with pytest.raises(ConfigError, match=r"in: model.layers.0.mlp.experts.gate_up_proj: need experts .* one by one"):
        convert(tmp_path / "in", tmp_path / "out", written_format("fp8"))
    assert not (tmp_path / "out").exists()
