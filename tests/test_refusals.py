"""Requests and settings that can never work are refused by name, before any work."""

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import CheckpointError, ConfigError, Message, Model, Mover, RequestError, Slot, Stage
from pipeline.api import BUNDLED
from pipeline.engine.policies import POLICIES, Policy


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    async with Model.open(device="cpu") as opened:
        yield opened


@pytest.mark.parametrize(
    ("prompt", "arguments", "says"),
    [
        ([], {}, "at least one token"),
        (None, {}, "need text or token ids, have NoneType"),
        ([1], {"stop_token_ids": [-1]}, "stop_token_ids: need token ids from 0 to .*; have \\(-1,\\)"),
        ([1] * 100, {"max_new_tokens": 1000}, "it was made for 1024"),
        ([5000], {}, "need token ids from 0 to 4095, have 5000 at 0"),
        ([1, -1], {}, "have -1 at 1"),
        ([1, True], {}, "have True at 1"),
        ([1.0], {}, "have 1.0 at 0"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens"),
        ("a", {"temprature": 1}, "did you mean 'temperature'"),
        ("a", {"max_new_tokens": 2000}, "it was made for 1024"),
        ("\ud800", {}, "lone surrogate"),
        ("a", {"gpu_groups": 4, "seed": 1}, "^gpu_groups: is a setting of Model.open; give it there"),
        ("a", {"prioritty": 1}, "did you mean 'priority'"),
        ("a", {"cache_scpe": "b"}, "did you mean 'cache_scope'"),
        ("a", {"priority": 1.0}, "priority: need a whole number from .*; have 1.0"),
        ("a", {"priority": True}, "priority: need .*; have True"),
        ("a", {"priority": 2**31}, "priority: need .*; have 2147483648"),
        ("a", {"cache_scope": ""}, "cache_scope: need a name of 1 to 256 characters, or None; have ''"),
        ("a", {"cache_scope": "x" * 257}, "cache_scope: need a name"),
        ("a", {"cache_scope": 7}, "cache_scope: need a name .*; have 7"),
    ],
)
async def test_bad_requests_are_refused_before_any_work(
    model: Model, prompt: object, arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        await model.generate(prompt, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=says):
        model.stream(prompt, **arguments)  # type: ignore[arg-type]
    assert model.statistics().passes == 0


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "ways"),
    [
        (
            100,
            60,
            ["shorten the prompt to 68 tokens", "lower max_new_tokens to 28", "context_tokens=160 and kv_tokens"],
        ),
        (200, 60, ["shorten the prompt to 68 tokens", "open the model with context_tokens=260 and kv_tokens=260"]),
        (10, 200, ["lower max_new_tokens to 118", "open the model with context_tokens=210 and kv_tokens=210"]),
        (200, 1000, ["ask for at most 128 of both; it was made for 1024"]),
    ],
)
async def test_every_way_out_of_too_little_room_works(prompt: int, new_tokens: int, ways: list[str]) -> None:
    settings: dict[str, Any] = {"device": "cpu", "context_tokens": 128, "kv_tokens": 128}
    async with Model.open(**settings) as model:
        with pytest.raises(RequestError, match=f"need room for {prompt} prompt and {new_tokens} new") as refused:
            model.stream([1] * prompt, max_new_tokens=new_tokens)
        told = str(refused.value).rpartition("have 128: ")[2].split(", or ")
        assert len(told) == len(ways)
        assert all(way in one for way, one in zip(ways, told, strict=True)), told
        for one in told:
            number = int(re.findall(r"\d+", one)[0])
            if one.startswith("shorten"):
                model.stream([1] * number, max_new_tokens=new_tokens)
            elif one.startswith("lower"):
                model.stream([1] * prompt, max_new_tokens=number)
            elif one.startswith("open"):
                larger = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", one)}
                async with Model.open(**{**settings, **larger}) as other:
                    other.stream([1] * prompt, max_new_tokens=new_tokens)
        with pytest.raises(RequestError, match=r"at least \d+ prompt .*: shorten the prompt to 68 tokens$"):
            model.stream("Once upon a time " * 200, max_new_tokens=60)


@pytest.mark.parametrize("begins_with_bos", [True, False])
async def test_an_empty_text_is_a_prompt_where_bos_begins_every_text(begins_with_bos: bool, tmp_path: Path) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": begins_with_bos}))
    async with Model.open(folder, device="cpu") as model:
        if begins_with_bos:
            of_text = await model.generate("", max_new_tokens=3)
            assert of_text.prompt_token_ids == (4094,)
            assert of_text == await model.generate([4094], max_new_tokens=3)
        else:
            with pytest.raises(RequestError, match=r"^prompt: need at least one token, have none"):
                model.stream("")


@pytest.mark.parametrize("n", [0, -1, 17, 2**63, 1.0, "2", True, [3]])
async def test_no_call_fans_out_without_bound(model: Model, n: object) -> None:
    with pytest.raises(RequestError, match="n: need a whole number from 1 to 16; have "):
        await model.generate("a", n=n)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="n: need a whole number from 1 to 16; have "):
        model.stream("a", n=n)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="seed: need a whole number"):
        await model.generate("a", n=3, seed=2**64)
    assert model.statistics().passes == 0
    assert model.statistics().requests.waiting == 0


class SaysNothing(Stage):
    pass


class HandsOn(Stage):
    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        return message


def named(name: object) -> Stage:
    stage = HandsOn()
    stage.name = name  # type: ignore[assignment]
    return stage


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gpu_groups": 0}, "gpu_groups: need a whole number from 1 to 65536, have 0"),
        ({"gpu_groups": 2.5}, "have 2.5"),
        (
            {"gpu_experts": 4},
            r"gpu_experts=4: need a model with experts, have .*llama.*; leave gpu_experts out",
        ),
        (
            {"cpu_experts": "auto"},
            r"cpu_experts=auto: need a model with experts, have .*llama.*; leave cpu_experts out",
        ),
        ({"host_experts": 4}, "host_experts=4: need a model with experts"),
        ({"share_prefixes": "no"}, "share_prefixes: need True or False, have 'no'"),
        ({"temperature": 0.5}, "^temperature: is an argument of generate and stream; give it there"),
        ({"max_tokens": 5}, "^max_tokens: is an argument of generate"),
        ({"cache_scope": "a"}, "^cache_scope: is an argument of generate"),
        ({"gpu_group": 4}, "unknown setting 'gpu_group'; did you mean 'gpu_groups'"),
        ({"queues": {"disk_reeder": 2}}, "did you mean 'disk_reader'"),
        ({"queues": {"disk_reader": 0}}, r"queues\['disk_reader'\]: need a whole number from 1"),
        ({"insert": {"disk_reader": [object()]}}, "need a list of instances of Stage or Mover"),
        ({"insert": {"compute_scheduler": []}}, "unknown actor 'compute_scheduler'"),
        (
            {"insert": {"disk_reader": [SaysNothing()]}},
            r"insert\['disk_reader'\]: SaysNothing has no `async def handle`",
        ),
        ({"insert": {"disk_reader": [named(None)]}}, r"insert\['disk_reader'\]: HandsOn needs a text as its `name`"),
        ({"insert": {"disk_reader": [named("kv_reader")]}}, "two actors are named 'kv_reader'"),
        ({"insert": {"gpu_uploader": [Mover()]}}, r"insert\['gpu_uploader'\]: Mover has no `async def move`"),
        ({"policy": POLICIES}, "need a name or a PrefetchPolicy .*, have .*'history1'"),
        ({"policy": SimpleNamespace(name="own", waits="event")}, "lacks triggered, fallback_seconds, .* at_start$"),
        ({"policy": Policy}, r"policy: need an instance, have the class Policy; give Policy\(...\)"),
        ({"policy": Policy(name=5)}, "policy: need a text as its name, have 5"),  # type: ignore[arg-type]
        ({"device": ["cpu"]}, "device: need one of auto, cpu, .* as text, have \\['cpu'\\]"),
        ({"device": "xpu"}, "device: unknown value 'xpu'; known are auto, cpu, cpu-copy, cuda"),
        ({"device": "cuda:one"}, "device: unknown value 'cuda:one'; known are auto, .*cuda:1"),
        ({"devices": ""}, r'devices: need 1 to 64 names, as in \["cuda:0", "cuda:1"\], or "all", have'),
        ({"devices": 2}, "devices: need 1 to 64 names, .*have 2"),
        ({"devices": ["cpu", "xpu"]}, "devices: unknown value 'xpu'"),
        ({"devices": ["cpu", None]}, "devices: need one of auto, .* as text, have None"),
        ({"devices": "cuda:0,cpu"}, "devices: need devices of one kind, have cuda and cpu"),
        ({"devices": "auto,auto"}, "devices: name each, as in cuda:0,cuda:1, have auto"),
        ({"devices": "cpu,cpu", "device": "cpu"}, "devices: is said beside device; give one of them"),
        ({"devices": "cpu,cpu", "insert": {"disk_reader": [HandsOn()]}}, "several devices need the class"),
        ({"insert": {"disk_reader": [dict]}}, "need a list of instances of Stage or Mover, or of what makes one"),
        ({"insert": {"disk_reader": [Mover.move]}}, r"insert\['disk_reader'\]: .*failed: TypeError"),
        ({"dtype": "int8"}, "dtype: unknown value 'int8'; known are"),
        ({"dtype": "float64"}, "dtype: unknown value 'float64'; known are auto, float32"),
        ({"cpu_memory": "8GB"}, "unknown setting 'cpu_memory'; known are device, .*host_memory"),
        ({"chunk_bytes": "8MB"}, "chunk_bytes: need a multiple of 4096, have 8000000"),
        ({"chunk_bytes": "80%"}, 'chunk_bytes: need bytes, or a size as "10GiB" or "1.8GB"; have .80%'),
        ({"context_tokens": 5000}, "made for 1024 positions"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"chunk_bytes": 5000}, "multiple of 4096"),
        ({"gpu_groups": 60_000, "residency": False}, "host memory: need .*have .*; set gpu_groups to at most"),
        ({"reader_lanes": 1000}, "from 1 to 64, have 1000"),
        ({"kv_disk": 5}, "kv_disk: need the path of a folder, have 5"),
        ({"kv_disk": ""}, "kv_disk: need a folder on a disk, have '', which is none"),
        ({"kv_disk": b"."}, "kv_disk: need the path of a folder, have b'.'"),
        ({"dtype": torch.bfloat16}, "dtype: need one of auto, float32, .* as text, have torch.bfloat16"),
        ({"queues": None}, "queues: need a mapping"),
        ({"insert": {"disk_reader": 5}}, "need a list of instances"),
    ],
)
async def test_settings_that_can_never_work_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        await Model.open(**settings)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        await Model.open(tmp_path / "nowhere")
