"""What config.json and the index say against what the files hold: every stored tensor counts, as for transformers."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import tiny_models
from support.safetensors_files import write_index, write_sharded

from pipeline import CheckpointError, Model

STEPS = 12
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
Tensors = dict[str, torch.Tensor]


def write(folder: Path, change: Callable[[Tensors], object], **settings: object) -> Path:
    """A checkpoint in two shards, the second with the embedding and the head, after `change` of its tensors."""
    tiny_models.save("llama_mha", folder, layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    change(tensors)
    last = {name: tensors.pop(name) for name in (EMBED, HEAD) if name in tensors}
    write_sharded(folder, [tensors, last])
    return folder


def reference(folder: Path) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return tiny_models.greedy(model, tiny_models.PROMPT, STEPS).token_ids


async def ours(folder: Path) -> list[int]:
    async with Model.open(folder, device="cpu") as model:
        output = await model.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True)
        return list(output.token_ids)


def embedding_is_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBED].clone()


STORED: dict[str, tuple[Callable[[Tensors], object], dict[str, object]]] = {
    "tied, and another head": (lambda tensors: None, {"tie_word_embeddings": True}),
    "tied, and the same head": (embedding_is_head, {"tie_word_embeddings": True}),
    "tied, and no head": (lambda tensors: tensors.pop(HEAD), {"tie_word_embeddings": True}),
    "tied, and only a head": (lambda tensors: tensors.pop(EMBED), {"tie_word_embeddings": True}),
    "untied, and the same head": (embedding_is_head, {}),
    "a head for something else": (lambda tensors: tensors.update({"score.weight": torch.ones(3, 48)}), {}),
    "buffers": (
        lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}),
        {},
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", STORED)
async def test_tokens_are_those_of_transformers_whatever_is_stored(what: str, tmp_path: Path) -> None:
    folder = await asyncio.to_thread(write, tmp_path, STORED[what][0], **STORED[what][1])
    assert await ours(folder) == await asyncio.to_thread(reference, folder)


@pytest.mark.filterwarnings("ignore")
async def test_a_stored_head_that_is_another_gives_other_tokens_than_the_tie(tmp_path: Path) -> None:
    """Or the first row of the table above could not fail."""
    other = write(tmp_path / "other", *STORED["tied, and another head"][:1], tie_word_embeddings=True)
    none = write(tmp_path / "none", *STORED["tied, and no head"][:1], tie_word_embeddings=True)
    assert await ours(other) != await ours(none)


@pytest.mark.filterwarnings("ignore")
async def test_a_tensor_that_the_index_does_not_name_is_used(tmp_path: Path) -> None:
    folder = write(tmp_path, lambda tensors: None)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    del index[HEAD]
    write_index(folder, index)
    assert await ours(folder) == await asyncio.to_thread(reference, folder)


async def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3), "b": torch.zeros(3)}
    folder = write(tmp_path, lambda tensors: None)
    write_sharded(folder, [tensors, {"b": torch.ones(3), "c": torch.ones(3)}])
    with pytest.raises(CheckpointError, match=r"model-00002.*holds tensor 'b', and so does .*model-00001.*; keep one"):
        await Model.open(folder)


async def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, lambda tensors: None)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: says that an adapter .*merge it"):
        await Model.open(folder)


async def test_what_is_left_out_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {f"score.{index}": torch.zeros(1) for index in range(7)}
    folder = write(tmp_path, lambda tensors: tensors.update(extra))
    async with Model.open(folder, device="cpu"):
        pass
    told = [record.getMessage() for record in caplog.records if "not used for text" in record.getMessage()]
    assert told == [f"{folder}: not used for text: tensors score.0, score.1, score.2, score.3, score.4 and 2 more"]
