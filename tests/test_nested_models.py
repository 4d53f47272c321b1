"""Text models in the checkpoints of models that see and hear: under any prefix, and what is left out is said."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.family_models import CASES

from pipeline import CheckpointError, Model
from pipeline.checkpoints.leftovers import counts

STEPS = 12
PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "")
TOWERS = {
    "vision_tower.patch.weight": "vision tower",
    "model.visual.merger.bias": "vision tower",
    "multi_modal_projector.norm.weight": "vision tower",
    "audio_tower.layers.0.conv.weight": "audio tower",
    "mtp.layers.0.mlp.up_proj.weight": "layers that draft",
    "model.layers.2.mlp.up_proj.weight": "layers that draft",
    "layers.3.self_attn.k_proj.weight": "layers that draft",
}


def write(folder: Path, prefix: str, left_out: tuple[str, ...] = (), **whole: object) -> Path:
    """A text model inside another one, its tensors behind `prefix`, with tensors of other parts."""
    tiny_models.save("mistral_window", folder, layers=2)
    text = json.loads((folder / "config.json").read_text())
    nested = {"model_type": "mistral3", "text_config": text, "tie_word_embeddings": False, **whole}
    (folder / "config.json").write_text(json.dumps(nested))
    tensors = load_file(folder / "model.safetensors")
    named = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    save_file({**named, **{name: torch.zeros(3) for name in left_out}}, folder / "model.safetensors")
    return folder


async def tokens(folder: Path) -> list[int]:
    async with Model.open(folder, device="cpu") as model:
        output = await model.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True)
        return list(output.token_ids)


async def test_tensors_are_found_behind_any_prefix(tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, "mistral_window", tmp_path, layers=2)
    expected = await tokens(tmp_path)
    for index, prefix in enumerate(PREFIXES):
        folder = tmp_path / str(index)
        folder.mkdir()
        assert await tokens(await asyncio.to_thread(write, folder, prefix)) == expected


async def test_experts_are_found_inside_kimi_as_it_is_published(tmp_path: Path) -> None:
    model = tiny_models.randomised(CASES["deepseek_v3 with experts"].config(), seed=2)
    await asyncio.to_thread(tiny_models.save_model, model, tmp_path, shards=1)
    expected, config = await tokens(tmp_path), json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "kimi_k25", "tie_word_embeddings": False, "text_config": {**config, "model_type": "kimi_k2"}}
    for path in tmp_path.glob("*.safetensors"):
        save_file({f"language_model.{name}": one for name, one in load_file(path).items()}, path)
    (tmp_path / "model.safetensors.index.json").unlink()
    for name in ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"):
        (tmp_path / "config.json").write_text(json.dumps({**whole, "architectures": [name]}))
        assert await tokens(tmp_path) == expected


async def test_one_line_says_which_parts_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, PREFIXES[0], tuple(TOWERS), num_nextn_predict_layers=2)
    with pytest.raises(CheckpointError, match=r"'layers\.3\..*is of layer 3, but config\.json has 2 layers"):
        await tokens(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_nextn_predict_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    await tokens(tmp_path)
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    parts = "vision tower (3 tensors), audio tower (1 tensors), layers that draft (3 tensors)"
    assert told == [f"{tmp_path}: text only: left out are {parts}"]


@pytest.mark.parametrize("name", ["embed_tokens_per_layer.weight", "per_layer_model_projection.weight"])
def test_what_gemma_adds_to_each_layer_counts_behind_any_prefix(name: str) -> None:
    assert all(counts(prefix + name) for prefix in PREFIXES)


async def test_what_is_missing_is_named_as_its_neighbours_are(tmp_path: Path) -> None:
    write(tmp_path, PREFIXES[1])
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    tensors["language_model.model.layers.1.mlp.other.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        await tokens(tmp_path)
    assert "'language_model.model.layers.1.mlp.up_proj.weight' is missing: need shape [104, 48]" in str(caught.value)
    assert "'language_model.model.layers.1.mlp.other.weight' would be left out" in str(caught.value)
