"""Checksums: of tensor bytes only, whichever thread sums them up, one group or row like another."""

from pathlib import Path

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.devices.memory import HostMemory
from pipeline.errors import CheckpointError
from pipeline.groups.groups import WeightGroups, plan_groups
from pipeline.groups.layout import HostLayout, Window, host_layout
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs
from pipeline.reading import checksums
from pipeline.reading.checksums import Checksums, choose_checking
from pipeline.system.page_cache import BLOCK_BYTES

GROUP = (1, "ffn")


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> WeightGroups:
    folder: Path = tmp_path_factory.mktemp("small") / "model"
    write_small_checkpoint(folder, "qwen2.5-7b")
    return plan_groups(group_specs(read_config(folder)), open_checkpoint(folder))


@pytest.fixture(params=["inline", "threads"])
def work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small chunks on threads, as those of large groups."""
    if request.param == "threads":
        monkeypatch.setattr(checksums, "INLINE_BYTES", 0)
    return str(request.param)


def chunks_of(layout: HostLayout) -> list[Window]:
    """As the source cuts windows up; a tensor begins in the middle of one chunk and ends in that of another."""
    return [
        Window(one.file, one.start + done, min(BLOCK_BYTES, one.length - done), one.slot_offset + done)
        for one in layout.windows
        for done in range(0, one.length, BLOCK_BYTES)
    ]


class Group:
    """A group in a host slot, and what sums it up."""

    def __init__(self, groups: WeightGroups) -> None:
        self.group = next(group for group in groups.groups if (group.layer, group.name) == GROUP)
        self.layout = host_layout(self.group)
        self.view = HostMemory(self.layout.slot_bytes).view
        self.view[:] = bytes(index * 7 % 251 for index in range(self.layout.slot_bytes))
        self.checksums = Checksums(groups.groups, 3, Path("model"))

    async def read(self) -> CheckpointError | None:
        """As the source does: chunks land in any order."""
        chunks = chunks_of(self.layout)
        sums = self.checksums.begin(GROUP, chunks, self.view)
        for chunk in reversed(chunks):
            sums.add(chunk)
        await sums.ended()
        return self.checksums.compare(sums)


async def test_every_byte_of_a_tensor_counts_and_none_around_it(groups: WeightGroups, work: str) -> None:
    one = Group(groups)
    of_tensors = {
        byte: tensor.name
        for tensor in one.group.tensors
        for byte in range(one.layout.offsets[tensor.short], one.layout.offsets[tensor.short] + tensor.length)
    }
    assert 0 < len(of_tensors) < one.layout.slot_bytes
    assert await one.read() is None
    for byte in range(0, one.layout.slot_bytes, 97):
        one.view[byte] ^= 1 << byte % 8
        fault = await one.read()
        assert (fault is not None) == (byte in of_tensors)
        if fault is not None:
            assert repr(of_tensors[byte]) in str(fault)
        one.view[byte] ^= 1 << byte % 8
        assert await one.read() is None
    assert one.checksums.mismatches == sum(byte in of_tensors for byte in range(0, one.layout.slot_bytes, 97))
    assert one.checksums.nbytes == one.checksums.groups * one.group.needed_bytes
    assert bool(one.checksums._threads._threads) == (work == "threads"), "a small chunk wakes no thread"
    await one.checksums.aclose()


async def test_the_error_tells_where_and_what_to_do(groups: WeightGroups) -> None:
    one = Group(groups)
    assert await one.read() is None
    tensor = next(tensor for tensor in one.group.tensors if tensor.short == "up")
    one.view[one.layout.offsets["up"] + 4500] ^= 4
    told = await one.read()
    assert isinstance(told, CheckpointError)
    assert f"{tensor.file}: weights changed on disk: bytes " in str(told)
    first, last = (int(word) for word in str(told).split("bytes ")[1].split(",")[0].split(" to "))
    assert first <= tensor.start + 4500 < last
    assert last - first <= BLOCK_BYTES
    assert "`penstock verify model`" in str(told)
    one.view[:] = bytes(len(one.view))
    assert "more pieces of the group" in str(await one.read())
    await one.checksums.aclose()


def test_rows_are_compared_with_their_first_read_whatever_else_is_fetched_with_them(groups: WeightGroups) -> None:
    (table,) = groups.embed.tensors
    row_bytes = table.length // table.shape[0]
    some = Checksums(groups.groups, 1, Path("model"))

    def rows(*values: int) -> memoryview:
        return memoryview(b"".join(bytes([value]) * row_bytes for value in values) + b"rest")

    assert some.compare_rows(table, [5, 9, 299], rows(5, 9, 3)) is None
    assert some.compare_rows(table, [9], rows(9)) is None
    assert some.compare_rows(table, [0, 299, 5], rows(1, 3, 5)) is None
    told = some.compare_rows(table, [0, 5, 9], rows(1, 5, 8))
    start = table.start + 9 * row_bytes
    assert f"bytes {start} to {start + row_bytes}, of tensor 'model.embed_tokens.weight'" in str(told)
    assert (some.rows, some.mismatches) == (10, 1)
    assert some.compare_rows(table, [9], rows(9)) is None, "the first read is what counts"


@pytest.mark.parametrize(
    ("said", "shares_cores", "moving_gb", "gb_per_second", "cores", "told"),
    [
        (True, True, 100, 50.0, 1, "on: as the settings say"),
        (False, False, 1, 1.0, 64, "off: as the settings say"),
        (None, False, 100, 50.0, 1, "on: it costs little beside copying to the device"),
        (None, True, 0.2, 50.0, 1, "on: few bytes move in a pass"),
        (None, True, 1, 1.4, 2, "off: it takes up to 10.0% of a pass, with 2 cores"),
        (None, True, 1, 0.28, 2, "on: it takes up to 2.0% of a pass, with 2 cores"),
        (None, True, 1, 2.1, 16, "on: it takes up to 1.9% of a pass, with 16 cores"),
        (None, True, 1, None, 32, "off: it takes up to 3.1% of a pass, with 32 cores"),
        (None, True, 1, None, 64, "on: it takes up to 1.6% of a pass, with 64 cores"),
    ],
)
def test_checksums_are_on_unless_the_cpu_that_computes_is_short_of_cores(
    said: bool | None,
    shares_cores: bool,
    moving_gb: float,
    gb_per_second: float | None,
    cores: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checksums, "usable_cores", lambda: cores)
    rate = None if gb_per_second is None else gb_per_second * 1e9
    checking = choose_checking(said, shares_cores=shares_cores, moving_bytes=int(moving_gb * 1e9), rate=rate)
    assert str(checking).startswith(told)
    assert ("set checksums=True" in str(checking)) == ("off: it" in told)
