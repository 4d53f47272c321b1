"""What is said of experts that are damaged: by `Model.open` where it can be seen, else by those that need them."""

import asyncio
import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.expert_slots import all_slots_are_back
from support.family_models import CASES
from support.tiny_models import randomised, save_model

from actors.core.expert_store import ExpertStore
from pipeline import ActorFailed, CheckpointError, ConfigError, Model, PenstockError, RequestError
from pipeline.reading.reading import WAYS

MLP = "model.layers.2.mlp"
EXPERT = f"{MLP}.experts.3"
UP = f"{EXPERT}.up_proj.weight"
Damage = Callable[[Path], object]
Tensors = dict[str, torch.Tensor]


def tensors(change: Callable[[Tensors], object]) -> Damage:
    """Change the tensors of the file."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        stored = load_file(file)
        change(stored)
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, file, metadata={"format": "pt"})

    return damage


def one(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return tensors(lambda stored: stored.update({name: change(stored[name])}))


def gone(*names: str) -> Damage:
    return tensors(lambda stored: [stored.pop(each) for each in [*stored] if each.startswith(names)])


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def both(stored: Tensors) -> None:
    """Store one matrix of all experts of a layer in one tensor, too."""
    module = f"{MLP}.experts"
    stored[f"{module}.down_proj"] = torch.stack([stored[f"{module}.{index}.down_proj.weight"] for index in range(6)])


QWEN, GROUPED = "qwen2_moe", "deepseek_v3 with experts"
DAMAGED: dict[str, tuple[str, Damage, str]] = {
    "a matrix is missing": (QWEN, gone(UP), rf"{UP}' is missing: need shape \[28, 48\]"),
    "an expert is missing": (QWEN, gone(f"{EXPERT}."), rf"{EXPERT}.gate_proj.weight' is missing"),
    "a row is missing": (QWEN, one(UP, lambda t: t[1:]), rf"{UP}': need shape \[28, 48\], have \[27, 48\]"),
    "whole numbers": (QWEN, one(UP, lambda t: t.to(torch.int8)), rf"{UP}': need dtype .*have I8"),
    "in one tensor, too": (QWEN, tensors(both), rf"{MLP}.experts.down_proj' would be left out"),
    "no shared expert": (QWEN, gone(f"{MLP}.shared_expert."), r"shared_expert.gate_proj.weight' is missing"),
    "no gate of the shared one": (QWEN, gone(f"{MLP}.shared_expert_gate"), r"shared_expert_gate.weight' is missing"),
    "a router of fewer": (QWEN, one(f"{MLP}.gate.weight", lambda t: t[1:]), r"gate.weight': need shape \[6, 48\]"),
    "fewer are said": (QWEN, config(num_experts=5), r"experts.5.down_proj.weight' would be left out"),
    "more are said": (QWEN, config(num_experts=7), r"experts.6.gate_proj.weight' is missing"),
    "none are said": (QWEN, config(num_experts=0), r"mlp.gate_proj.weight' is missing"),
    "absurdly many": (
        QWEN,
        config(num_experts=10**6),
        r"num_experts: need at most 131072 experts in all layers together; have 3000000",
    ),
    "more chosen than there are": (QWEN, config(num_experts_per_tok=7), r"num_experts_per_tok: .*1 to 6; have 7"),
    "none chosen": (QWEN, config(num_experts_per_tok=0), r"num_experts_per_tok: .*1 to 6; have 0"),
    "groups that do not divide": (GROUPED, config(n_group=5), r"n_group: need a divisor of n_routed_experts"),
    "more groups kept": (GROUPED, config(topk_group=99), r"topk_group: need a whole number from 1 to"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for name in (QWEN, GROUPED):
        save_model(randomised(CASES[name].config(), seed=3), folder / name, shards=1)
    return folder


@pytest.mark.parametrize("what", DAMAGED)
async def test_experts_that_are_damaged_are_refused_before_any_work(what: str, sound: Path, tmp_path: Path) -> None:
    name, damage, says = DAMAGED[what]
    shutil.copytree(sound / name, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(PenstockError, match=says) as caught:
        await Model.open(tmp_path)
    assert isinstance(caught.value, CheckpointError | ConfigError)
    assert str(tmp_path) in str(caught.value)


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound / QWEN, tmp_path, dirs_exist_ok=True)
    return tmp_path


def flip(file: Path) -> None:
    """Change a bit of each expert of a layer, and nothing that tells of it; once more, and all is as it was."""
    raw, status = bytearray(file.read_bytes()), file.stat()
    end = 8 + int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8:end]).items():
        if name.startswith(f"{MLP}.experts."):
            raw[end + entry["data_offsets"][0]] ^= 1
    with file.open("r+b") as opened:
        opened.write(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_was_there_before")
@pytest.mark.parametrize("device", ["cpu", "cpu-copy"])
async def test_an_expert_that_has_changed_is_named_and_the_model_goes_on(folder: Path, device: str) -> None:
    settings: dict[str, Any] = {"gpu_experts": 2, "host_experts": 1, "checksums": True}
    async with Model.open(folder, device=device, context_tokens=64, **settings) as model:

        async def answer() -> tuple[int, ...]:
            return (await model.generate([9, 8, 7], max_new_tokens=6, ignore_eos=True)).token_ids

        said = await answer()
        flip(folder / "model.safetensors")
        told = rf"^expert_reader failed at layer 2 group 'expert\.\d': .*model\.safetensors.*{MLP}\.experts\.\d\."
        with pytest.raises(ActorFailed, match=told):
            await answer()
        flip(folder / "model.safetensors")
        assert await answer() == said
        assert all_slots_are_back(model)


@pytest.mark.parametrize("way", WAYS)
async def test_experts_that_are_guessed_and_not_needed_disturb_nobody_though_they_cannot_be_read(
    way: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed, lost, failed = set[int](), set[int](), list[int]()
    want, guess, preadv = ExpertStore.want, ExpertStore.guess, os.preadv

    def take_note(store: ExpertStore, layer: int, experts: Sequence[int], **options: Any) -> int:
        needed.update(experts if layer == 2 else ())
        return want(store, layer, experts, **options)

    def guess_wrongly(store: ExpertStore, layer: int, experts: Sequence[int]) -> None:
        guess(store, layer, [*sorted({*range(6)} - needed), *experts] if layer == 2 else experts)

    def fail(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if position in lost:
            failed.append(position)
            raise OSError(errno.EIO, "Input/output error")
        return preadv(descriptor, buffers, position)

    async def answer(model: Model) -> tuple[int, ...]:
        return (await model.generate([9], max_new_tokens=6, ignore_eos=True)).token_ids

    settings: dict[str, Any] = {"device": "cpu", "context_tokens": 64, "gpu_experts": 8, "reader_way": way}
    monkeypatch.setattr(ExpertStore, "want", take_note)
    async with Model.open(folder, **settings, lookahead=False) as model:
        said = await answer(model)
    monkeypatch.setattr(ExpertStore, "guess", guess_wrongly)
    async with Model.open(folder, **settings, lookahead=True) as model:
        line = model.runtime.expert_line
        assert line is not None
        unneeded = [line.room.catalog.host[2, f"expert.{index}"] for index in {*range(6)} - needed]
        lost |= {layout.windows[0].start for layout in unneeded}
        monkeypatch.setattr(os, "preadv", fail)
        assert [await answer(model) for _ in range(3)] == [said] * 3
        assert all_slots_are_back(model)
    told = [record.message for record in caplog.records if "could not be read ahead" in record.message]
    assert all("layer 2 expert." in message and "model.safetensors" in message for message in told)
    assert 0 < len(told) == len({*told}) <= len(unneeded)
    assert len(failed) == 2 * len(told)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "the line did not start anew"


async def test_a_router_that_gives_no_numbers_ends_its_request_and_no_other(folder: Path) -> None:
    """The row of a token that the other request has not is what makes its states none."""
    one("model.embed_tokens.weight", lambda t: t.index_fill(0, torch.tensor([77]), torch.nan))(folder)
    async with Model.open(folder, device="cpu", context_tokens=64, gpu_experts=2) as model:
        alone = (await model.generate([5, 6], max_new_tokens=6, ignore_eos=True)).token_ids
        calls = [model.generate(prompt, max_new_tokens=6, ignore_eos=True) for prompt in ([5, 6], [5, 77])]
        sound, spoilt = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(spoilt, RequestError)
        assert not isinstance(sound, BaseException)
        assert sound.token_ids == alone


async def test_what_experts_move_counts_where_checksums_are_decided(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.reading.checksums.FEW_BYTES", 1)
    for slots, why in ((2, "of a pass"), (24, "few bytes")):
        async with Model.open(folder, device="cpu", context_tokens=64, gpu_experts=slots) as model:
            assert model.runtime.moving_bytes == 0
            assert why in str(model.runtime.checking)
