"""Opening reads headers and what the line has room for, so its time does not depend on the number of layers."""

import asyncio
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pipeline.generation.folder as folders
from actors.core.message import Message
from pipeline import CheckpointError, ConfigError, Model, Slot, Stage
from pipeline.checkpoints.presets import PRESETS
from pipeline.groups.layout import Window
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs
from pipeline.reading.preadv_lanes import PreadvLane, PreadvLanes
from pipeline.reading.rows import RowReader

SHARDS = 30
PROMPT = "class Stack:\n"


def write_hollow_checkpoint(folder: Path, like: str) -> int:
    """A checkpoint of real headers over holes: no disk space behind its bytes. Returns how many it claims to have."""
    (folder / "config.json").write_text(json.dumps(PRESETS[like]))
    specs = {spec.name: spec for group in group_specs(read_config(folder)).values() for spec in group}
    weight_map, total_bytes = {}, 0
    for number in range(SHARDS):
        file, header, end = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", {}, 0
        for spec in list(specs.values())[number::SHARDS]:
            begin, end = end, end + math.prod(spec.shape) * 2
            header[spec.name] = {"dtype": "BF16", "shape": list(spec.shape), "data_offsets": [begin, end]}
            weight_map[spec.name] = file
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / file).open("wb") as shard:
            shard.write(len(raw).to_bytes(8, "little") + raw)
            shard.truncate(8 + len(raw) + end)
        total_bytes += end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total_bytes


async def test_141_gigabytes_open_in_under_a_second_of_computing(tmp_path: Path) -> None:
    assert write_hollow_checkpoint(tmp_path, "llama-3-70b") > 141e9
    seconds = []
    for _ in range(3):
        started = time.process_time()
        model = await Model.open(tmp_path, device="cpu", gpu_groups=1, context_tokens=16, max_tokens_per_pass=16)
        seconds.append(time.process_time() - started)
        await model.aclose()
    assert min(seconds) < 1.0


async def test_a_tokenizer_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, vocabulary_size: int) -> object:
        raise PermissionError(13, "Permission denied", str(folder / "tokenizer.json"))

    monkeypatch.setattr(folders, "load_tokenizer", refused)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: Permission denied"):
        await Model.open(device="cpu")


async def test_what_is_wrong_with_a_tokenizer_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(folder: Path, vocabulary_size: int) -> object:
        raise CheckpointError("a tokenizer of no kind")

    monkeypatch.setattr(folders, "load_tokenizer", odd)
    with pytest.raises(CheckpointError, match="bundled: a tokenizer of no kind"):
        await Model.open(device="cpu")


async def test_an_open_model_stands_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slot is filled and the disk at rest; the threads that the first group needs are there."""
    read_chunk = PreadvLane.read_chunk

    def slowly(lane: PreadvLane, chunk: Window, *where: Any) -> bool:
        time.sleep(0.02)
        return read_chunk(lane, chunk, *where)

    monkeypatch.setattr(PreadvLane, "read_chunk", slowly)
    async with Model.open(device="cpu", gpu_groups=4, residency=False) as model:
        line, source = model.runtime.line.statistics(), model.runtime.source
        assert line.budgets["host"].held == 4
        assert source.bytes_needed >= sum(
            layout.needed_bytes for layout in list(model.runtime.catalog.host.values())[:4]
        )
        ready, threads = source.bytes_read, {thread.name for thread in threading.enumerate()}
        assert {"penstock-rows_0", "penstock-compute_0"} <= threads
        await asyncio.sleep(0.1)
        assert source.bytes_read == ready
        assert len((await model.generate(PROMPT, max_new_tokens=2, ignore_eos=True)).token_ids) == 2


@pytest.mark.parametrize("after", ["prefetch_planner", "disk_reader", "gpu_uploader"])
async def test_opening_does_not_wait_for_a_stage_that_waits(after: str) -> None:
    allowed = asyncio.Event()

    class Gate(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            await self.stalled("gate", message, allowed.wait())
            return message

    async with asyncio.timeout(20), Model.open(insert={after: [Gate()]}) as model:
        call = asyncio.create_task(model.generate(PROMPT, max_new_tokens=2, ignore_eos=True))
        await asyncio.sleep(0.02)
        assert not call.done()
        allowed.set()
        assert len((await call).token_ids) == 2


async def test_an_embedding_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(rows: RowReader, file: Path, *arguments: Any) -> None:
        raise OSError(5, "Input/output error: at byte 0", str(file))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(RowReader, "_read", refused)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: Input/output error: at byte 0"):
        await Model.open(device="cpu")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_device_that_cannot_compute_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> None:
        raise RuntimeError("no kernel image is available")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("pipeline.generation.rehearsal.attend_all", refused)
    with pytest.raises(
        ConfigError, match=r"^cpu failed to compute with zeros in torch\.float32: no kernel image .*; choose another"
    ):
        await Model.open(device="cpu", dtype="float32")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("nothing_was_there_before")
async def test_opening_does_not_wait_for_all_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when as many groups have come as there are slots; the others come while the first are computed."""
    read_chunks, begun, read = PreadvLanes.read, 0, 0

    async def slowly(lanes: PreadvLanes, *arguments: Any) -> None:
        nonlocal begun, read
        begun += 1
        await asyncio.sleep(0.05 * begun)
        await read_chunks(lanes, *arguments)
        read += 1

    monkeypatch.setattr(PreadvLanes, "read", slowly)
    async with Model.open(device="cpu", gpu_groups=2) as model:
        assert len(model.runtime.residency.stays("host")) == len(model.runtime.catalog.order)
        assert read < 8
