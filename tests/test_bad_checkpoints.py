"""What `Model.open` says to a checkpoint that cannot work: one clear error before any work."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models

from pipeline import CheckpointError, ConfigError, Model, PenstockError

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny_models.save("llama_mha", folder, shards=3)
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensor(folder: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    for path in shards(folder):
        tensors = load_file(path)
        for name in [name for name in tensors if part in name]:
            changed = change(tensors.pop(name))
            if changed is not None:
                tensors[name] = changed.contiguous()
        save_file(tensors, path, metadata={"format": "pt"})


def rewrite_header(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    path = shards(folder)[0]
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change({name: entry for name, entry in header.items() if name != "__metadata__"})
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def shift(header: dict[str, dict[str, object]], begin: int, end: int) -> None:
    entry = list(header.values())[1]
    first, last = entry["data_offsets"]  # type: ignore[misc]
    entry["data_offsets"] = [first + begin, last + end]


def point_index_at(folder: Path, target: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = target
    (folder / INDEX).write_text(json.dumps(index))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda f: shards(f)[1].unlink(), r"model-00002-of-\d+\.safetensors"),
    "truncated shard": (
        lambda f: os.truncate(shards(f)[1], 5000),
        r"model-00002-of.*declares \d+ bytes, the file has 5000",
    ),
    "empty shard": (lambda f: os.truncate(shards(f)[0], 0), r"model-00001-of"),
    "overlap": (lambda f: rewrite_header(f, lambda h: shift(h, -4, -4)), r"model-00001-of.*model\."),
    "hole": (lambda f: rewrite_header(f, lambda h: shift(h, 4, 4)), r"model-00001-of.*model\."),
    "beyond the file": (lambda f: rewrite_header(f, lambda h: shift(h, 0, 10**9)), r"model-00001-of"),
    "huge header": (lambda f: shards(f)[0].write_bytes((1 << 40).to_bytes(8, "little") + b"{}"), r"model-00001-of"),
    "index names another file": (lambda f: point_index_at(f, "model-00009.safetensors"), r"model-00009"),
    "index leaves the folder": (lambda f: point_index_at(f, "../other.safetensors"), r"\.\./other\.safetensors"),
    "absolute path in the index": (lambda f: point_index_at(f, "/other.safetensors"), r"/other\.safetensors"),
    "missing tensor": (lambda f: change_tensor(f, "layers.1.mlp.up_proj", lambda t: None), r"layers\.1\.mlp\.up_proj"),
    "wrong shape": (
        lambda f: change_tensor(f, "layers.2.self_attn.q_proj", lambda t: t[:-1]),
        r"layers\.2\.self_attn\.q_proj.*need shape \[48, 48\], have \[47, 48\]",
    ),
    "wrong dtype": (
        lambda f: change_tensor(f, "layers.0.mlp.down_proj", lambda t: t.to(torch.int8)),
        r"layers\.0\.mlp\.down_proj.*need dtype .*have I8",
    ),
    "unknown architecture": (
        lambda f: edit(f, model_type="mamba", architectures=["MambaForCausalLM"]),
        r"model_type.*Llama 2/3.*mamba",
    ),
    "quantised": (lambda f: edit(f, quantization_config={"quant_method": "gptq"}), r"quantization_config"),
    "other activation": (lambda f: edit(f, hidden_act="gelu"), r"hidden_act"),
    "absurd layers": (lambda f: edit(f, num_hidden_layers=-1), r"num_hidden_layers"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config\.json"),
    "nothing at all": (lambda f: [path.unlink() for path in f.iterdir()], r"config\.json"),
    "no weights": (lambda f: [path.unlink() for path in [*shards(f), f / INDEX]], r"safetensors"),
    "nonsense defaults": (
        lambda f: (f / "generation_config.json").write_text('{"temperature": "hot", "do_sample": true}'),
        r"temperature",
    ),
    "defaults out of range": (
        lambda f: (f / "generation_config.json").write_text('{"temperature": -3, "do_sample": true}'),
        r"generation_config\.json: temperature: need a number.*have -3",
    ),
    "fewer layers than the files": (
        lambda f: edit(f, num_hidden_layers=2),
        r"is of layer 2.*config\.json has 2 layers",
    ),
    "a file in place of the folder": (lambda f: (shutil.rmtree(f), f.write_text("")), r"is a file"),
    "a folder in place of the config": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        r"plain",
    ),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer"),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_checkpoint_is_refused_by_name(what: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    spoil, says = BAD[what]
    spoil(folder)
    with pytest.raises(PenstockError, match=says) as caught:
        await Model.open(folder)
    assert isinstance(caught.value, CheckpointError | ConfigError)


async def test_only_pickles_are_refused_by_name(sound: Path, tmp_path: Path) -> None:
    shutil.copy(sound / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        await Model.open(tmp_path)


async def test_an_error_leaves_nothing_open(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    (folder / "tokenizer.json").write_text("{}")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PenstockError):
        await Model.open(folder)
    assert len(os.listdir("/proc/self/fd")) == before
