"""What config.json and the index say against what the files hold: every stored tensor counts, as for transformers."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.safetensors_files import in_every_dtype, unpad, write_index, write_sharded

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
    last = {name: tensors.pop(name) for name in list(tensors) if "embed_tokens" in name or HEAD in name}
    write_sharded(folder, [tensors, last])
    return folder


def reference(folder: Path) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return tiny_models.greedy(model, tiny_models.PROMPT, STEPS).token_ids


async def ours(folder: Path, **options: Any) -> list[int]:
    async with Model.open(folder, **{"device": "cpu", **options}) as model:
        output = await model.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True)
        return list(output.token_ids)


def embedding_is_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBED].clone()


def under_other_names(tensors: Tensors) -> None:
    """As the bare decoder saves them, some with its prefix twice, and the head with the decoder's."""
    for name in list(tensors):
        bare = name.removeprefix("model.")
        other = f"model.{name}" if "layers.1.mlp" in name or name == HEAD else bare
        tensors[other] = tensors.pop(name)


def without_head_and_prefix(tensors: Tensors) -> None:
    """As LlamaModel.save_pretrained leaves it."""
    del tensors[HEAD]
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


STORED: dict[str, tuple[Callable[[Tensors], object], dict[str, object]]] = {
    "tied, and another head": (lambda tensors: None, {"tie_word_embeddings": True}),
    "tied, and the same head": (embedding_is_head, {"tie_word_embeddings": True}),
    "tied, and no head": (lambda tensors: tensors.pop(HEAD), {"tie_word_embeddings": True}),
    "tied, and only a head": (lambda tensors: tensors.pop(EMBED), {"tie_word_embeddings": True}),
    "untied, and the same head": (embedding_is_head, {}),
    "other names": (under_other_names, {}),
    "the bare decoder, tied": (without_head_and_prefix, {"tie_word_embeddings": True, "architectures": ["LlamaModel"]}),
    "every dtype": (in_every_dtype, {}),
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
async def test_an_index_that_is_not_true_does_no_harm_where_all_that_is_needed_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves out the head, promises a tensor that nobody needs, and names the wrong shard and size of another."""
    twice = {"rotary_emb.inv_freq": torch.ones(6)}
    folder = write(tmp_path, lambda tensors: tensors.update(twice))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    first, second = sorted(set(index.values()))
    save_file({**load_file(folder / second), **twice}, folder / second, metadata={"format": "pt"})
    del index[HEAD]
    others = {"mtp.fc.weight": second, "model.norm.weight": second, "model.layers.9.mlp.up_proj.weight": first}
    path.write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": {**index, **others}}))
    tokens = await ours(folder)
    assert tokens == await asyncio.to_thread(reference, folder)
    told = [record.getMessage() for record in caplog.records if "promises" in record.getMessage()]
    assert [line.partition("needed: ")[2] for line in told] == ["model.layers.9.mlp.up_proj.weight, mtp.fc.weight"]
    path.write_text(json.dumps({"weight_map": {**index, **others}}))
    assert await ours(folder) == tokens  # transformers needs the metadata


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def wrapped(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
HARMFUL: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no head": (
        without(HEAD),
        r"tensor 'lm_head.weight' is missing: need shape \[259, 48\]; .*tie_word_embeddings false",
    ),
    "no embedding": (without(EMBED), r"tensor 'model.embed_tokens.weight' is missing: need shape \[259, 48\]; fetch"),
    "two norms": (
        lambda tensors: tensors.update({"norm.weight": tensors[NORM] + 1}),
        r"00001.*: tensor 'model.norm.weight': need one place, have 'norm.weight' in .*00001.* too; keep one",
    ),
    "names of a wrapper": (wrapped, r"need the name 'model.layers.0.input_layernorm.weight': 'module.' is left from"),
    "integers": (
        lambda tensors: tensors.update({UP: tensors[UP].to(torch.int8)}),
        r"up_proj.weight': need dtype F64, F32, F16, BF16, have I8; config.json says otherwise",
    ),
}


@pytest.mark.parametrize("what", HARMFUL)
async def test_what_transformers_would_make_up_is_refused(what: str, tmp_path: Path) -> None:
    change, told = HARMFUL[what]
    folder = await asyncio.to_thread(write, tmp_path, change)
    with pytest.raises(CheckpointError, match=told):
        await Model.open(folder, device="cpu")


async def test_a_needed_tensor_in_two_shards_and_one_that_is_only_promised_are_refused(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(write, tmp_path, without(UP))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    first, second = sorted(set(index.values()))
    write_index(folder, {**index, UP: second})
    save_file({**load_file(folder / second), NORM: torch.ones(48)}, folder / second, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        await Model.open(folder, device="cpu")
    assert str(caught.value).splitlines() == [
        f"{folder / second}: lacks tensor {UP!r}, which model.safetensors.index.json promises: need shape [104, 48]; "
        "fetch the file again",
        f"{folder / first}: tensor {NORM!r}: need one place, {folder / second} holds it too; keep one",
    ]


async def test_a_file_that_nothing_names_is_told_where_a_tensor_is_missing(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(write, tmp_path, without(UP))
    save_file({UP: torch.zeros(104, 48)}, folder / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"more.safetensors lies there too: .*\n.*up_proj.weight' is missing"):
        await Model.open(folder, device="cpu")


@pytest.mark.filterwarnings("ignore")
async def test_odd_addresses_change_nothing_and_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = await asyncio.to_thread(write, tmp_path, in_every_dtype)
    options: list[dict[str, Any]] = [{"device": device, "checksums": True} for device in ("cpu", "cpu-copy")]
    options += [{"device": "cpu", "reader_way": "aiofiles", "chunk_bytes": 4096, "reader_lanes": 3}]
    even = [await ours(folder, **one) for one in options]
    for file in folder.glob("*.safetensors"):
        unpad(file)
    caplog.clear()
    assert [await ours(folder, **one) for one in options] == even
    told = [
        record.getMessage() for record in caplog.records if "no multiple of their items' size" in record.getMessage()
    ]
    assert len(told) == len(options)
    assert re.search(r": 20, as 'model.layers.0.input_layernorm.weight' at byte \d*[13579] of model-00001", told[0])


@pytest.mark.filterwarnings("ignore")
async def test_casting_at_use_gives_the_bits_of_casting_before(tmp_path: Path) -> None:
    def cast(tensors: Tensors) -> None:
        in_every_dtype(tensors)
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    answers = []
    for folder, change in ((tmp_path / "mixed", in_every_dtype), (tmp_path / "cast", cast)):
        await asyncio.to_thread(write, folder, change, dtype="bfloat16")
        async with Model.open(folder, device="cpu") as model:
            output = await model.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=5)
            answers.append((output.token_ids, output.logprobs))
    assert answers[0] == answers[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("declared", "computed"), [("bfloat16", torch.bfloat16), ("float64", torch.float32), (None, torch.float32)]
)
async def test_it_computes_in_what_config_json_declares_else_as_the_first_matrix_is_stored(
    declared: str | None, computed: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change = lambda tensors: tensors.update({HEAD: tensors[HEAD].half()})  # noqa: E731
    folder = await asyncio.to_thread(write, tmp_path, change, dtype=declared)
    async with Model.open(folder, device="cpu") as model:
        runtime = model.runtime
        assert runtime.dtype == computed
        casts = [
            one.nbytes for one in runtime.plan.holdings if one.holder == "activations: weights that are cast or decoded"
        ]
    assert casts == [259 * 48 * computed.itemsize]
    assert [record for record in caplog.records if f"are cast to {computed} whenever" in record.getMessage()]


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
