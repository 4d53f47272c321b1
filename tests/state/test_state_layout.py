"""Which slots of recurrent state a pass moves, where they lie, and what the plan says of them."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.core.ports import Copy
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.batching import Piece
from pipeline.models.delta_state import StateParts
from pipeline.models.layers import DeltaNet
from pipeline.state.cell_layout import CellLayout, cells_of
from pipeline.state.kv_holdings import kv_holdings
from pipeline.state.kv_layout import KvLayout
from pipeline.state.kv_placement import KvPlacement
from pipeline.state.state_layout import StateLayout, StateRoom
from pipeline.system.page_cache import BLOCK_BYTES

REQUESTS, SNAPSHOTS = 5, 3
KIND = DeltaNet(key_heads=2, value_heads=4, key_dim=5, value_dim=3, kernel=4, grouped=False)


def layout_of(dtype: torch.dtype = torch.float32, *, carries: bool = True) -> StateLayout:
    return StateLayout(REQUESTS, SNAPSHOTS, StateParts.of(KIND, dtype, carries=carries))


@st.composite
def passes(draw: st.DrawFn) -> list[Piece]:
    """Sequences with slots of their own, some of which begin with a snapshot, and leave others."""
    slots = draw(st.permutations(range(REQUESTS + SNAPSHOTS)))
    pieces = []
    for own in slots[: draw(st.integers(1, REQUESTS))]:
        read = draw(st.sampled_from([-1, own, slots[-1]]))
        taken = tuple((0, slot) for slot in draw(st.sets(st.sampled_from(slots[REQUESTS:-1]))))
        pieces.append(Piece(None, 0, (7,), 1, state_read=read, state_write=own, snapshots=taken))  # type: ignore[arg-type]
    return pieces


@given(passes())
def test_what_a_sequence_begins_with_comes_whole_and_what_it_leaves_goes_whole(pieces: list[Piece]) -> None:
    layout = layout_of()
    come, go = layout.cached_cells(pieces), layout.new_cells(pieces)
    assert cells_of(come, layout.cell_bytes) == sorted({piece.state_read for piece in pieces} - {-1})
    written = {slot for piece in pieces for slot in (piece.state_write, *(slot for _, slot in piece.snapshots))}
    assert cells_of(go, layout.cell_bytes) == sorted(written)
    for copies in (come, go):
        assert all(copy.source_offset == copy.target_offset for copy in copies)
        assert sum(copy.length for copy in copies) == len(cells_of(copies, layout.cell_bytes)) * layout.cell_bytes
    for piece in pieces:
        held = {cell for cell in range(REQUESTS + SNAPSHOTS) if layout.holds(piece, cell)}
        assert held == {piece.state_read, piece.state_write, *(slot for _, slot in piece.snapshots)} - {-1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carries", [True, False])
def test_slots_are_padded_to_pages_and_their_parts_lie_apart(dtype: torch.dtype, carries: bool) -> None:
    layout = layout_of(dtype, carries=carries)
    assert layout.cell_bytes % BLOCK_BYTES == 0
    assert 0 <= layout.cell_bytes - layout.parts.nbytes < BLOCK_BYTES
    assert layout.layer_bytes == (REQUESTS + SNAPSHOTS) * layout.cell_bytes
    memory = torch.zeros(layout.layer_bytes + 64, dtype=torch.uint8)
    view = layout.view(memory)
    for slot in (0, 3, REQUESTS + SNAPSHOTS - 1):
        memory[slot * layout.cell_bytes : (slot + 1) * layout.cell_bytes] = 1
        for part in (view.matrices, view.inputs, view.gates):
            assert len(part) == REQUESTS + SNAPSHOTS
            assert bool((part[slot] != 0).all())
            assert int((part != 0).sum()) == part[slot].numel()
        memory.zero_()
    view.inputs[2] = 1
    assert [copy.source_offset // layout.cell_bytes for copy in changed(memory)] == [2]


def changed(memory: torch.Tensor) -> list[Copy]:
    first, last = (int(memory.nonzero()[index]) for index in (0, -1))
    return [Copy(first, first, last + 1 - first)]


def test_states_and_snapshots_are_holdings_of_their_own_in_every_place() -> None:
    state, small, large = layout_of(), KvLayout(8, 1, 64, torch.float32), KvLayout(8, 8, 64, torch.float32)
    layouts: dict[int, CellLayout] = dict(enumerate([state, small, state, large, state, small]))
    kv = KvPlacement((0, 2), (1,), (3, 4, 5), device_slots=2, host_slots=2)
    device: Any = CpuDevice(copy=True)
    held = {(one.holder, one.place): one for one in kv_holdings(layouts, kv, "kv_tokens", device, on_disk=False)}
    slot = state.cell_bytes
    expected = {
        ("recurrent state of 2 layers", "device"): (2 * REQUESTS * slot, "max_requests"),
        ("state snapshots of 2 layers", "device"): (2 * SNAPSHOTS * slot, "state_snapshots"),
        ("KV blocks and recurrent states: 2 layers take turns", "device"): (2 * large.layer_bytes, "kv_tokens"),
        ("KV blocks of 1 layers", "host"): (small.layer_bytes, "kv_tokens, or set kv_disk"),
        ("KV blocks and recurrent states: 2 layers pass through", "host"): (2 * large.layer_bytes, "kv_tokens"),
        ("KV blocks of 2 layers", "disk"): (small.layer_bytes + large.layer_bytes, "kv_tokens"),
        ("recurrent state of 1 layers", "disk"): (REQUESTS * slot, "max_requests"),
        ("state snapshots of 1 layers", "disk"): (SNAPSHOTS * slot, "state_snapshots"),
    }
    assert {key: (one.nbytes, one.knob) for key, one in held.items()} == expected
    room = StateRoom.of(layouts.values())
    assert (room, StateRoom.of([small])) == (StateRoom(REQUESTS, SNAPSHOTS, 3 * state.layer_bytes), None)
    assert re.fullmatch(r"5 requests and 3 snapshots, [0-9.]+ [kM]B", str(room))
