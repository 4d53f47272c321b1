"""Layers that keep different things between passes, and take turns in the same slots: each finds its own again."""

import asyncio
import contextlib
import errno
import itertools
import random
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from actors.companion_planner import CompanionPlanner
from actors.companion_reader import CompanionReader
from actors.companion_swapper import CompanionSwapper
from actors.companion_uploader import CompanionUploader
from actors.core.budget import Budget
from actors.core.companion import SHARED
from actors.core.line import Line, running
from actors.core.message import ended
from actors.core.ports import Copy
from actors.core.trace import Trace
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.batching import Piece
from pipeline.models.attention import LayerKV
from pipeline.models.delta_state import LayerState, StateParts
from pipeline.models.layers import DeltaNet
from pipeline.state.blocks import BLOCK_TOKENS
from pipeline.state.cell_layout import CellLayout, cells_of
from pipeline.state.kv import KeyValueCache
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.spill_file import Region, SpillFile
from pipeline.state.state_layout import StateLayout

BLOCKS, REQUESTS, SNAPSHOTS, PASSES = 24, 3, 1, 24
STATE = StateLayout(
    REQUESTS,
    SNAPSHOTS,
    StateParts.of(
        DeltaNet(key_heads=2, value_heads=4, key_dim=8, value_dim=16, kernel=4, grouped=False),
        torch.float32,
        carries=True,
    ),
)
NARROW, WIDE = KvLayout(BLOCKS, 1, 4, torch.float32, window=20), KvLayout(BLOCKS, 4, 32, torch.float32)
CHUNKED = KvLayout(BLOCKS, 2, 16, torch.float32, chunk=24)
LAYERS: list[CellLayout] = [STATE, NARROW, WIDE, STATE, CHUNKED, STATE, WIDE, NARROW, STATE]
PLACEMENTS = {
    "three places": KvPlacement((0, 1), (2, 3), (4, 5, 6, 7, 8), device_slots=2, host_slots=2),
    "disk alone": KvPlacement((), (), tuple(range(9)), device_slots=3, host_slots=3),
    "no disk": KvPlacement((0, 4), (1, 2, 3, 5, 6, 7, 8), (), device_slots=3, host_slots=0),
    "one place": KvPlacement((0, 2), (), (1, 3, 4, 5, 6, 7, 8), device_slots=0, host_slots=2),
}


@dataclass
class Running:
    """What layouts ask of a sequence, and how many of its tokens were computed."""

    number: int
    blocks: list[int]
    slot: int
    tokens: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)


def number_of(layer: int, sequence: Running, position: int) -> float:
    """What is kept of a position."""
    return float(1 + position + 1000 * sequence.number + 10_000 * layer)


def look_back(layer: int, layout: CellLayout, view: object, piece: Piece) -> None:
    """See that all is there that the tokens look back at."""
    sequence: Running = piece.sequence  # type: ignore[assignment]
    if isinstance(view, LayerState):
        if piece.start:
            expected = number_of(layer, sequence, piece.start - 1)
            assert all(bool((part[piece.state_read] == expected).all()) for part in (view.matrices, view.inputs))
        return
    assert isinstance(view, LayerKV)
    assert isinstance(layout, KvLayout)
    window, chunk = layout.window or piece.start + 1, layout.chunk or piece.start + 1
    first = max(0, piece.start + 1 - window, piece.start // chunk * chunk)
    for position in range(first, piece.start):
        row = view.memory[sequence.blocks[position // BLOCK_TOKENS], :, position % BLOCK_TOKENS]
        assert bool((row == number_of(layer, sequence, position)).all())


def write(layer: int, view: object, piece: Piece) -> None:
    sequence: Running = piece.sequence  # type: ignore[assignment]
    last = piece.start + len(piece.token_ids) - 1
    if isinstance(view, LayerState):
        for part in (view.matrices, view.inputs, view.gates):
            part[piece.state_write] = number_of(layer, sequence, last)
            for index, slot in piece.snapshots:
                part[slot] = number_of(layer, sequence, piece.start + index)
        return
    assert isinstance(view, LayerKV)
    for position in range(piece.start, last + 1):
        block = sequence.blocks[position // BLOCK_TOKENS]
        view.memory[block, :, position % BLOCK_TOKENS] = number_of(layer, sequence, position)


@contextlib.asynccontextmanager
async def moving(cache: KeyValueCache, device: CpuDevice) -> AsyncIterator[None]:
    host = Budget("kv host", cache.host_cells, time.perf_counter)
    on_device = Budget("kv device", {SHARED: cache.device_cells}, time.perf_counter) if cache.device_cells else None
    line = Line(CompanionPlanner(cache), catalog=None, clock=time.perf_counter, trace=Trace(recording=False))  # type: ignore[arg-type]
    for actor in (CompanionReader(cache, host), CompanionUploader(cache, device, on_device)):
        line.then(actor, queue=9)
    line.then(CompanionSwapper(cache, device), queue=9)
    async with asyncio.timeout(20), running([line]):
        yield


async def run_pass(cache: KeyValueCache, device: CpuDevice, pieces: Sequence[Piece]) -> None:
    cache.begin(pieces)
    for layer, layout in enumerate(LAYERS):
        if (preparing := cache.rendezvous.prepare(layer)) is not None:
            await preparing
        view, arrived = cache.layer(layer)

        def work(layer: int = layer, layout: CellLayout = layout, view: object = view) -> None:
            for piece in pieces:
                if not piece.sequence.failures:  # type: ignore[attr-defined]
                    look_back(layer, layout, view, piece)
            for piece in pieces:
                write(layer, view, piece)

        ran = device.launch("compute", work, (arrived,))
        cache.attended(layer, ran)
        cache.rendezvous.computed(layer, ran)
        await ended(ran)
        if ran.error is not None:
            raise ran.error


def pieces_of(sequences: Sequence[Running], draw: random.Random) -> list[Piece]:
    """Some of them, each with some tokens more; one leaves a snapshot, which another begins with later."""
    pieces = []
    for one in draw.sample(sequences, draw.randint(1, len(sequences))):
        room = len(one.blocks) * BLOCK_TOKENS - one.tokens
        count = min(room, draw.choice([1, 1, 1, 9, 17]))
        if count:
            taken = ((count - 1, REQUESTS),) if one.number == 0 else ()
            read = one.slot if one.tokens else -1
            slots = {"state_read": read, "state_write": one.slot, "snapshots": taken}
            pieces.append(Piece(one, one.tokens, tuple(array("i", [7] * count)), 1, **slots))  # type: ignore[arg-type]
            one.tokens += count
    return pieces


@pytest.mark.parametrize("where", PLACEMENTS)
async def test_each_layer_finds_what_it_has_left(where: str, tmp_path: Path) -> None:
    device = CpuDevice(copy=where != "one place")
    cache = KeyValueCache(dict(enumerate(LAYERS)), PLACEMENTS[where], device, tmp_path, lose={})
    draw, blocks = random.Random(where), itertools.count()
    sequences = [Running(number, [next(blocks) for _ in range(8)], number) for number in range(REQUESTS)]
    async with moving(cache, device):
        passes = [pieces for _ in range(PASSES) if (pieces := pieces_of(sequences, draw))]
        for pieces in passes:
            await run_pass(cache, device, pieces)
        other = Running(0, sequences[0].blocks, slot=1)  # goes on from the snapshot of the first one
        (last,) = [pieces for pieces in passes if any(piece.sequence is sequences[0] for piece in pieces)][-1:]
        start = next(piece.start + len(piece.token_ids) for piece in last if piece.sequence is sequences[0])
        going_on = Piece(other, start, (7,), 1, state_read=REQUESTS, state_write=other.slot)  # type: ignore[arg-type]
        await run_pass(cache, device, [going_on])
    cache.memory.close()
    await device.aclose()


@pytest.mark.parametrize(("layer", "cell", "fails"), [(3, 1, {1}), (7, 16, {2})], ids=["state", "KV"])
async def test_a_cell_that_the_disk_loses_ends_those_that_need_it_and_is_told_by_its_kind(
    layer: int, cell: int, fails: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, lost = CpuDevice(copy=True), [set[int](), set[int]()]
    lose = {StateLayout: lost[0].add, KvLayout: lost[1].add}
    cache = KeyValueCache(dict(enumerate(LAYERS)), PLACEMENTS["disk alone"], device, tmp_path, lose=lose)
    read, region = SpillFile._read, cache.memory.spill_regions[layer]

    def failing(self: SpillFile, one: Region, run: Copy, buffer: memoryview) -> None:
        if one == region and cell in cells_of([run], one.cell_bytes):
            raise OSError(errno.EIO, "Input/output error")
        read(self, one, run, buffer)

    monkeypatch.setattr(SpillFile, "_read", failing)
    sequences = [Running(number, [*range(8 * number, 8 * number + 8)], number) for number in range(REQUESTS)]
    async with moving(cache, device):
        for start in (0, 5):
            states = [{"state_read": one.slot if start else -1, "state_write": one.slot} for one in sequences]
            pieces = [Piece(one, start, (7,) * 5, 1, **slots) for one, slots in zip(sequences, states, strict=True)]  # type: ignore[arg-type]
            await run_pass(cache, device, pieces)
    assert {one.number for one in sequences if one.failures} == fails
    assert lost == ([{cell}, set()] if layer == 3 else [set(), {cell}])
    cache.memory.close()
    await device.aclose()
