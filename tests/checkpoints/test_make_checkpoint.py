import asyncio
import base64
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline import Model
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.checkpoints.presets import PRESETS
from pipeline.errors import ConfigError
from pipeline.formats.parts import gives_logits
from pipeline.groups.groups import plan_groups
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs

TINY: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 64,
    "ffn_size": 96,
    "heads": 4,
    "kv_heads": 2,
    "vocabulary_size": 2000,
}


def test_the_folder_is_a_sharded_checkpoint_of_the_shape_asked_for(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "new" / "model"
    more = {"shard_bytes": 300_000, "attention_bias": True, "mlp_bias": True}
    make_checkpoint(out, "llama-3-8b", progress=lambda *step: steps.append(step), **more, **TINY)
    config = read_config(out)
    layer, attention = config.layer_kinds[0], config.attentions[0]
    assert len(layer.biases) == 7
    assert (config.layers, config.hidden_size, layer.feed_forward.size) == (2, 64, 96)
    assert (attention.heads, attention.kv_heads) == (4, 2)
    with open_checkpoint(out) as checkpoint:
        groups = plan_groups(group_specs(config), checkpoint)
    assert (groups.dtype, groups.ignored) == (torch.bfloat16, ())
    shards = sorted(out.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for name, tensor in tensors.items():
        if name.endswith("norm.weight"):
            assert (tensor == 1).all()
        else:
            tolerance = 0.1 if tensor.ndim == 2 else 0.5  # a bias has few items
            assert tensor.float().std().item() == pytest.approx(0.02, rel=tolerance)
            assert abs(tensor.float().mean().item()) < 0.02 * tolerance
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert steps[-1] == (total_bytes, total_bytes)
    assert [written for written, _ in steps] == sorted({written for written, _ in steps})
    with safe_open(shards[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "all can be read by the same users"


@pytest.mark.parametrize("like", ["qwen3.5-27b", "gemma-4-31b", "phi-4-14b"])
async def test_one_whose_layers_differ_runs_and_its_norms_keep_numbers_small(like: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", like, head_dim=16, **{**TINY, "layers": 6})
    async with Model.open(tmp_path / "model", device="cpu") as model:
        output = await model.generate([1, 2, 3], max_new_tokens=3, ignore_eos=True, logprobs=1)
    assert output.logprobs is not None
    assert all(-8 < logprob < -1 for step in output.logprobs for logprob in step.values())


WITH_EXPERTS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "qwen3-30b-a3b": ("fp8", {"expert_size": 64}),
    "qwen3.6-35b-a3b": (None, {"expert_size": 32}),
    "mixtral-8x7b": ("mxfp4", {}),
    "gpt-oss-20b": (None, {}),
}


@pytest.mark.parametrize("like", WITH_EXPERTS)
async def test_one_with_experts_runs(like: str, tmp_path: Path) -> None:
    stored, sizes = WITH_EXPERTS[like]
    shape = {**TINY, "head_dim": 16, "ffn_size": 128, "experts": 6, "chosen_experts": 2, **sizes}
    make_checkpoint(tmp_path / "model", like, stored=stored, shard_bytes=300_000, **shape)
    async with Model.open(tmp_path / "model", device="cpu") as model:
        output = await model.generate([1, 2, 3], max_new_tokens=3, ignore_eos=True, logprobs=1)
    assert output.logprobs is not None
    assert all(-8 < logprob < -1 for step in output.logprobs for logprob in step.values())


def test_experts_of_gpt_oss_are_stored_as_it_stores_them(tmp_path: Path) -> None:
    shape = {**TINY, "head_dim": 16, "experts": 6, "chosen_experts": 2}
    make_checkpoint(tmp_path / "own", "gpt-oss-20b", **shape)
    make_checkpoint(tmp_path / "plain", "gpt-oss-20b", stored="bf16", **shape)
    own, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "plain"))
    module = "model.layers.1.mlp.experts"
    shapes = {name: [*tensor.shape] for name, tensor in (own | plain).items() if name.startswith(module)}
    assert shapes == {
        f"{module}.gate_up_proj": [6, 64, 192],
        f"{module}.gate_up_proj_bias": [6, 192],
        f"{module}.gate_up_proj_blocks": [6, 192, 2, 16],
        f"{module}.gate_up_proj_scales": [6, 192, 2],
        f"{module}.down_proj": [6, 96, 64],
        f"{module}.down_proj_bias": [6, 64],
        f"{module}.down_proj_blocks": [6, 64, 3, 16],
        f"{module}.down_proj_scales": [6, 64, 3],
    }
    assert own[f"{module}.gate_up_proj_scales"].unique().numel() < 8
    assert own[f"{module}.gate_up_proj_blocks"].flatten(1).unique(dim=0).shape[0] == 6, "no expert is as another"
    with pytest.raises(ConfigError, match="format of its own, or as bf16; have 'fp8'"):
        make_checkpoint(tmp_path / "other", "gpt-oss-20b", stored="fp8", **shape)


def test_routing_is_as_skewed_as_it_is_asked_to_be(tmp_path: Path) -> None:
    shares = []
    for skew in (0.0, 0.25, 0.5):
        shape = {**TINY, "hidden_size": 256, "head_dim": 16, "expert_size": 8, "layers": 1, "experts": 128}
        make_checkpoint(tmp_path / str(skew), "qwen3-30b-a3b", routing_skew=skew, **shape)
        router = load_file(tmp_path / str(skew) / "model.safetensors")["model.layers.0.mlp.gate.weight"].float()
        chosen = (torch.randn(4000, 256, generator=torch.Generator().manual_seed(1)) @ router.T).topk(8).indices
        shares.append(chosen.flatten().bincount(minlength=128).sort(descending=True).values[:32].sum().item() / 32000)
    assert shares == pytest.approx([0.27, 0.45, 0.69], abs=0.06)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_small_one_is_a_single_file_and_its_seed_decides_the_bytes(dtype: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_checkpoint(tmp_path / name, "qwen3-8b", dtype=dtype, seed=seed, head_dim=16, **TINY)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / "model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    assert not (tmp_path / "a" / "model.safetensors.index.json").exists()


def test_tensors_larger_than_a_chunk_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.checkpoints.random_weights.PIECE_ITEMS", 1000)
    make_checkpoint(tmp_path / "model", "qwen2.5-0.5b", **TINY)
    embedding = load_file(tmp_path / "model" / "model.safetensors")["model.embed_tokens.weight"]
    assert embedding.unique(dim=0).shape == (2000, 64)


@pytest.mark.parametrize(("stored", "rounded"), [("int4", 0.12), ("fp8", 0.03), ("mxfp4", 0.13)])
async def test_quantised_it_is_opened_whatever_the_files(stored: str, rounded: float, tmp_path: Path) -> None:
    await asyncio.to_thread(decodes_to_about_what_is_drawn_without_a_format, stored, rounded, tmp_path)
    async with Model.open(tmp_path / "sharded", device="cpu") as model:
        assert len((await model.generate([5, 9], max_new_tokens=3, ignore_eos=True)).token_ids) == 3


def decodes_to_about_what_is_drawn_without_a_format(stored: str, rounded: float, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    shape = {**TINY, "hidden_size": 128, "ffn_size": 384, "heads": 4, "kv_heads": 2}
    out, sharded = tmp_path / "model", tmp_path / "sharded"
    make_checkpoint(tmp_path / "plain", "llama-3-8b", **shape)
    make_checkpoint(out, "llama-3-8b", stored=stored, progress=lambda *step: steps.append(step), **shape)
    make_checkpoint(sharded, "llama-3-8b", stored=stored, shard_bytes=50_000, **shape)
    plain, config = load_file(tmp_path / "plain" / "model.safetensors"), read_config(out)
    tensors = load_file(out / "model.safetensors")
    assert steps[-1] == (sum(tensor.nbytes for tensor in tensors.values()),) * 2
    with open_checkpoint(out) as checkpoint:
        groups = plan_groups(group_specs(config), checkpoint, config.quantization.format_of)
    assert sorted(map(len, groups.formats.values())) == [2, 14]
    for group in groups.groups:
        views = {tensor.short: tensors[tensor.name] for tensor in group.tensors}
        for matrix in group.matrices if not gives_logits(group.name) else ():
            decoded = matrix.over(views).decoded(torch.float32)
            drawn = plain[f"{matrix.tensors[0].name.rpartition('.')[0]}.weight"].float()
            assert (decoded - drawn).norm() / drawn.norm() < rounded


def test_transformers_loads_it(tmp_path: Path) -> None:
    from support.tiny_models import transformers

    make_checkpoint(tmp_path / "model", "qwen2.5-0.5b", dtype="float32", **TINY)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert torch.isfinite(model(torch.tensor([[1, 2, 1999]])).logits).all()


def test_its_tokenizer_covers_the_whole_vocabulary(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "llama-3-8b", **{**TINY, "vocabulary_size": 70_000, "hidden_size": 8})
    lines = (tmp_path / "model" / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    assert list(ranks.values()) == list(range(69_998))
    encoding = tiktoken.Encoding("made", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
    text = "Grüße, \U0001f600 hello\0"
    token_ids = encoding.encode(text)
    assert encoding.decode(token_ids) == text
    assert len(token_ids) < len(text.encode())
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    config = read_config(tmp_path / "model")
    contents = {int(index): token["content"] for index, token in settings["added_tokens_decoder"].items()}
    assert contents == {69_998: settings["bos_token"], 69_999: settings["eos_token"]}
    assert (config.bos_id, config.eos_ids) == (69_998, (69_999,))
    assert settings["add_bos_token"]


PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "mistral-small-3.1-24b": 23_572_403_200,
    "qwen3.5-27b": 26_895_998_464,
    "gemma-3-27b": 27_009_346_304,
    "gemma-4-31b": 30_697_345_340,
    "phi-4-14b": 14_659_507_200,
    "granite-3.3-8b": 8_170_864_640,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3.6-35b-a3b": 34_660_610_688,
    "mixtral-8x7b": 46_702_792_704,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "glm-4.7-flash": 29_943_393_920,
}
"""As their publishers count them, without towers and what drafts."""


@pytest.mark.parametrize("like", PRESETS)
def test_a_full_disk_is_noticed_before_any_weight_is_written(
    like: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(12345))
    with pytest.raises(ConfigError, match=f"need {2 * PARAMETERS[like]} bytes .*, have 12345 .12.3 kB.; make room"):
        make_checkpoint(tmp_path / "model", like, stored="bf16")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stop(written_bytes: int, total_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(tmp_path / "model", "llama-3-8b", progress=stop, **TINY)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    (tmp_path / "file").touch()
    (tmp_path / "killed.partial").mkdir()
    for name, message in (("full", "not an empty folder"), ("file", "not an empty folder"), ("killed", "was killed")):
        with pytest.raises(ConfigError, match=message):
            make_checkpoint(tmp_path / name, "llama-3-8b", **TINY)
    assert (tmp_path / "full" / "precious").exists()
    (tmp_path / "empty").mkdir()
    make_checkpoint(tmp_path / "empty", "llama-3-8b", **TINY)
    assert (tmp_path / "empty" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("like", "options", "message"),
    [
        ("llama-9", {}, "unknown preset 'llama-9'; known are llama-2-7b, llama-3-8b"),
        ("llama-3-8b", {"dtype": "int8"}, "unknown dtype 'int8'; known are float32"),
        ("llama-3-8b", {"num_layers": 3}, "unknown override 'num_layers'; known are layers"),
        ("llama-3-8b", {"vocabulary_size": 257}, "need at least 258 .* have 257"),
        ("llama-3-8b", {"experts": 4}, "experts: llama-3-8b has no such setting, have 4; leave it out"),
        ("mixtral-8x7b", {"experts": 1}, "need a whole number from 1 to 1; have 2"),
        ("qwen3-30b-a3b", {"routing_skew": -1.0}, "routing_skew: need a number from 0 to 10, have -1"),
        ("llama-3-8b", {"layers": 0}, "^like llama-3-8b: layers: need a whole number from 1 to 10000; have 0$"),
        ("llama-3-8b", {"heads": 3, "kv_heads": 2}, "^like llama-3-8b: .*[ :]heads"),
    ],
)
def test_what_cannot_work_is_refused_by_name(like: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_checkpoint(tmp_path / "model", like, **options)
    assert list(tmp_path.iterdir()) == []
