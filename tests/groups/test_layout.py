from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.formats.tensors import TensorRange
from pipeline.groups.catalog import tensor_views
from pipeline.groups.groups import WeightGroup
from pipeline.groups.layout import (
    BLOCK_BYTES,
    device_layout,
    host_layout,
    row_window,
)

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def make_range(short: str, file: str, start: int, shape: tuple[int, ...], dtype: str = "BF16") -> TensorRange:
    length = ITEM_BYTES[dtype]
    for size in shape:
        length *= size
    return TensorRange(short, short, Path(file), start, length, shape, dtype)


@st.composite
def weight_groups(draw: st.DrawFn) -> tuple[WeightGroup, dict[Path, bytes]]:
    """Tensors anywhere in two files, at odd bytes too, neighbours or far apart, and the content of the files."""
    ends = {"one": 0, "two": 0}
    tensors = []
    for index in range(draw(st.integers(1, 6))):
        file = draw(st.sampled_from(sorted(ends)))
        gap = draw(st.sampled_from([0, 0, 1, 8, 100, 4095, 4096, 5000, 20000]))
        dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
        shape = draw(st.sampled_from([(1, 2), (16,), (64, 32), (128, 24), (2048, 2)]))
        tensor = make_range(f"t{index}", file, ends[file] + gap, shape, dtype)
        ends[file] = tensor.start + tensor.length
        tensors.append(tensor)
    random = Random(ends["one"])
    return (
        WeightGroup(0, "attn", tuple(draw(st.permutations(tensors)))),
        {Path(file): random.randbytes(end) for file, end in ends.items()},
    )


@settings(deadline=None)
@given(drawn=weight_groups())
def test_windows_are_whole_blocks_that_cover_every_tensor_once_and_odd_ones_alone(
    drawn: tuple[WeightGroup, dict[Path, bytes]],
) -> None:
    group, _ = drawn
    layout = host_layout(group)
    odd = {tensor.short for tensor in group.tensors if tensor.start % ITEM_BYTES[tensor.dtype]}
    places = {tensor.short: layout.offsets[tensor.short] for tensor in group.tensors if tensor.short not in odd}
    position, held = 0, []
    for window in layout.windows:
        assert window.start % BLOCK_BYTES == window.length % BLOCK_BYTES == 0
        assert window.slot_offset == position
        position += window.length
        of_window = [
            tensor
            for tensor in group.tensors
            if tensor.file == window.file
            and 0 <= layout.offsets[tensor.short] - window.slot_offset < window.length
            and window.start <= tensor.start
            and tensor.start + tensor.length <= window.start + window.length
        ]
        assert len(of_window) == 1 or not odd & {tensor.short for tensor in of_window}
        for tensor in of_window:
            places[tensor.short] = window.slot_offset + tensor.start - window.start
        held += [tensor.short for tensor in of_window]
    assert layout.slot_bytes == position
    assert sorted(held) == sorted(tensor.short for tensor in group.tensors)
    for first, second in pairwise(layout.windows):
        assert odd or first.file != second.file or first.start + first.length < second.start
    moved = {move.source_offset: move for move in layout.moves}
    assert moved.keys() == {places[short] for short in odd}
    for tensor in group.tensors:
        assert layout.offsets[tensor.short] % ITEM_BYTES[tensor.dtype] == 0
        place = places[tensor.short]
        assert layout.offsets[tensor.short] == (moved[place].target_offset if tensor.short in odd else place)
    assert layout.needed_bytes == sum(tensor.length for tensor in group.tensors)
    assert layout.slot_bytes < layout.needed_bytes + 2 * BLOCK_BYTES * len(group.tensors)


@settings(deadline=None)
@given(drawn=weight_groups())
def test_bytes_arrive_in_the_device_slot_as_they_were_in_the_files(
    drawn: tuple[WeightGroup, dict[Path, bytes]],
) -> None:
    group, content = drawn
    host = host_layout(group)
    device = device_layout(group, host, 256)
    host_slot = bytearray(host.slot_bytes)
    for window in host.windows:
        read = content[window.file][window.start :][: window.length]
        host_slot[window.slot_offset : window.slot_offset + len(read)] = read
    for move in host.moves:
        host_slot[move.target_offset : move.target_offset + move.length] = host_slot[move.source_offset :][
            : move.length
        ]
    device_slot = bytearray(device.slot_bytes)
    for copy in device.copies:
        device_slot[copy.target_offset : copy.target_offset + copy.length] = host_slot[copy.source_offset :][
            : copy.length
        ]
    for slot, offsets in ((host_slot, host.offsets), (device_slot, device.offsets)):
        views = tensor_views(torch.frombuffer(slot, dtype=torch.uint8), offsets, group.tensors)
        for tensor in group.tensors:
            view = views[tensor.short]
            stored = content[tensor.file][tensor.start :][: tensor.length]
            assert view.flatten().view(torch.uint8).numpy().tobytes() == stored
            assert (tuple(view.shape), view.element_size()) == (tensor.shape, ITEM_BYTES[tensor.dtype])
    for first, second in pairwise(device.copies):
        assert first.target_offset + first.length <= second.target_offset
    assert all(offset % 256 == 0 for offset in device.offsets.values())
    assert sum(copy.length for copy in device.copies) == host.needed_bytes


def test_neighbours_travel_in_one_read_and_one_copy() -> None:
    tensors = (make_range("down", "one", 5120, (64, 32)), make_range("up", "one", 5120 + 4096, (32, 64)))
    host = host_layout(WeightGroup(0, "ffn", tensors))
    assert [(window.start, window.length) for window in host.windows] == [(4096, 12288)]
    assert host.offsets == {"down": 1024, "up": 5120}
    (copy,) = device_layout(WeightGroup(0, "ffn", tensors), host, 256).copies
    assert (copy.source_offset, copy.target_offset, copy.length) == (1024, 0, 8192)


def test_distant_tensors_are_read_apart() -> None:
    tensors = (make_range("q", "one", 0, (64, 32)), make_range("o", "one", 8192, (64, 32)))
    host = host_layout(WeightGroup(0, "attn", tensors))
    assert [(window.start, window.length, window.slot_offset) for window in host.windows] == [
        (0, 4096, 0),
        (8192, 4096, 4096),
    ]
    assert len(device_layout(WeightGroup(0, "attn", tensors), host, 256).copies) == 1


@settings(deadline=None)
@given(start=st.integers(0, 1 << 40), length=st.integers(1, 1 << 20))
def test_a_row_lies_in_the_fewest_blocks(start: int, length: int) -> None:
    window_start, window_length = row_window(start, length)
    assert window_start % BLOCK_BYTES == window_length % BLOCK_BYTES == 0
    assert window_start <= start < window_start + BLOCK_BYTES
    assert window_start + window_length - BLOCK_BYTES < start + length <= window_start + window_length
