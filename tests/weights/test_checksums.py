"""Checksums: of tensor bytes only, whichever thread sums them up, one group or row like another."""

import asyncio
from pathlib import Path

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline.devices.memory import HostMemory
from pipeline.errors import CheckpointError
from pipeline.models.config import read_config
from pipeline.models.families import group_specs
from pipeline.weights import checksums
from pipeline.weights.checkpoint import open_checkpoint
from pipeline.weights.checksums import Checksums, choose_checking
from pipeline.weights.groups import WeightGroups, plan_groups
from pipeline.weights.layout import HostLayout, host_layout

GROUP = (1, "ffn")


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> WeightGroups:
    folder: Path = tmp_path_factory.mktemp("small") / "model"
    write_small_checkpoint(folder, "qwen2.5-7b")
    return plan_groups(group_specs(read_config(folder)), open_checkpoint(folder))


@pytest.fixture(params=["inline", "threads"])
def work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small pieces on threads, as those of large groups."""
    if request.param == "threads":
        monkeypatch.setattr(checksums, "INLINE_BYTES", 0)
        monkeypatch.setattr(checksums, "PIECE_BYTES", 1000)
    return str(request.param)


def layouts(groups: WeightGroups) -> dict[tuple[int, str], HostLayout]:
    return {(group.layer, group.name): host_layout(group) for group in groups.groups}


def filled(nbytes: int) -> HostMemory:
    memory = HostMemory(nbytes)
    memory.view[:] = bytes(index * 7 % 251 for index in range(nbytes))
    return memory


async def test_every_byte_of_a_tensor_counts_and_none_around_it(groups: WeightGroups, work: str) -> None:
    layout, memory = layouts(groups)[GROUP], filled(layouts(groups)[GROUP].slot_bytes)
    group = next(group for group in groups.groups if (group.layer, group.name) == GROUP)
    of_tensors = {
        byte: tensor.name
        for tensor in group.tensors
        for byte in range(layout.offsets[tensor.short], layout.offsets[tensor.short] + tensor.length)
    }
    assert 0 < len(of_tensors) < layout.slot_bytes
    some = Checksums(groups.groups, layouts(groups), groups.embed, 3)
    assert await some.compare(*GROUP, memory) is None
    for byte in range(0, layout.slot_bytes, 97):
        memory.view[byte] ^= 1 << byte % 8
        fault = await some.compare(*GROUP, memory)
        assert (fault is not None) == (byte in of_tensors)
        if fault is not None:
            assert repr(of_tensors[byte]) in str(fault)
        memory.view[byte] ^= 1 << byte % 8
        assert await some.compare(*GROUP, memory) is None
    assert some.mismatches == sum(byte in of_tensors for byte in range(0, layout.slot_bytes, 97))
    assert some.nbytes == some.groups * group.needed_bytes
    assert bool(some._threads._threads) == (work == "threads"), "a small group wakes no thread"
    await some.aclose()


async def test_the_error_tells_where_and_what_to_do(groups: WeightGroups, work: str) -> None:
    layout, memory = layouts(groups)[GROUP], filled(layouts(groups)[GROUP].slot_bytes)
    some = Checksums(groups.groups, layouts(groups), groups.embed, 3)
    assert await some.compare(*GROUP, memory) is None
    group = next(group for group in groups.groups if (group.layer, group.name) == GROUP)
    tensor = next(tensor for tensor in group.tensors if tensor.short == "up")
    memory.view[layout.offsets["up"] + 1500] ^= 4
    told = await some.compare(*GROUP, memory)
    assert isinstance(told, CheckpointError)
    first, last = (1000, 2000) if work == "threads" else (0, tensor.length)
    assert f"{tensor.file}: weights changed on disk: bytes {tensor.start + first} to {tensor.start + last}" in str(told)
    assert f"`penstock verify {tensor.file.parent}`" in str(told)
    memory.view[:] = bytes(len(memory.view))
    assert "more pieces of the group" in str(await some.compare(*GROUP, memory))
    await some.aclose()


async def test_a_cancelled_look_ends_only_when_its_threads_are_through(
    groups: WeightGroups, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "INLINE_BYTES", 0)
    digest, looked = checksums._digest, []

    def slow(run: memoryview) -> int:
        looked.append(len(run))
        return digest(run)

    monkeypatch.setattr(checksums, "_digest", slow)
    some = Checksums(groups.groups, layouts(groups), groups.embed, 1)
    memory = filled(layouts(groups)[GROUP].slot_bytes)
    task = asyncio.ensure_future(some.compare(*GROUP, memory))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    seen = len(looked)
    await some.aclose()
    assert len(looked) == seen > 0
    assert some.groups == 0, "what nobody waited for is no first read"


def test_rows_are_compared_with_their_first_read_whatever_else_is_fetched_with_them(groups: WeightGroups) -> None:
    row_bytes = groups.embed.length // groups.embed.shape[0]
    some = Checksums(groups.groups, layouts(groups), groups.embed, 1)

    def rows(*values: int) -> memoryview:
        return memoryview(b"".join(bytes([value]) * row_bytes for value in values) + b"rest")

    assert some.compare_rows([5, 9, 299], rows(5, 9, 3)) is None
    assert some.compare_rows([9], rows(9)) is None
    assert some.compare_rows([0, 299, 5], rows(1, 3, 5)) is None
    told = some.compare_rows([0, 5, 9], rows(1, 5, 8))
    start = groups.embed.start + 9 * row_bytes
    assert f"bytes {start} to {start + row_bytes}, of tensor 'model.embed_tokens.weight'" in str(told)
    assert (some.rows, some.mismatches) == (10, 1)
    assert some.compare_rows([9], rows(9)) is None, "the first read is what counts"


@pytest.mark.parametrize(
    ("said", "unified", "moving_gb", "gb_per_second", "cores", "told"),
    [
        (True, True, 100, 50.0, 1, "on: as the settings say"),
        (False, False, 1, 1.0, 64, "off: as the settings say"),
        (None, False, 100, 50.0, 1, "on: the CPU does not compute"),
        (None, True, 0.2, 50.0, 1, "on: few bytes move in a pass"),
        (None, True, 1, 3.2, 2, "off: it takes up to 6.4% of a pass, with 2 cores"),
        (None, True, 1, 0.9, 2, "on: it takes up to 1.8% of a pass, with 2 cores"),
        (None, True, 1, 3.2, 8, "on: it takes up to 1.6% of a pass, with 8 cores"),
        (None, True, 1, None, 8, "off: it takes up to 3.5% of a pass, with 8 cores"),
        (None, True, 1, None, 16, "on: it takes up to 1.8% of a pass, with 16 cores"),
    ],
)
def test_checksums_are_on_unless_the_cpu_that_computes_is_short_of_cores(
    said: bool | None,
    unified: bool,
    moving_gb: float,
    gb_per_second: float | None,
    cores: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checksums, "usable_cores", lambda: cores)
    rate = None if gb_per_second is None else gb_per_second * 1e9
    checking = choose_checking(said, changed=False, unified=unified, moving_bytes=int(moving_gb * 1e9), rate=rate)
    assert str(checking).startswith(told)
    assert ("set checksums=True" in str(checking)) == ("off: it" in told)


def test_checksums_are_off_where_a_stage_may_change_what_was_read() -> None:
    checking = choose_checking(None, changed=True, unified=False, moving_bytes=0, rate=None)
    assert str(checking).startswith("off: a stage of yours behind disk_reader")
