"""The catalog over a real checkpoint: every group through a host slot into a device slot, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_checkpoints import write_small_checkpoint

from actors.core.budget import Budget
from actors.core.message import READY, Message
from pipeline.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.devices.lane import do_behind
from pipeline.devices.memory import HostMemory, copy_bytes
from pipeline.devices.port import TWO_PLACES
from pipeline.formats.neighbours import runs
from pipeline.formats.parts import MULTIPLIED_TOGETHER
from pipeline.groups.catalog import WeightCatalog, tensor_views
from pipeline.groups.groups import WeightGroup, WeightGroups, plan_groups
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs
from pipeline.reading.reading import Reading
from pipeline.reading.source import CheckpointSource
from pipeline.system.page_cache import BLOCK_BYTES


@dataclass(frozen=True)
class Small:
    tensors: dict[str, torch.Tensor]
    checkpoint: Checkpoint
    groups: WeightGroups

    def expected(self, group: WeightGroup) -> dict[str, torch.Tensor]:
        """The group's tensors from what was saved; a slice of the head by the rows that come before it."""
        before = 0
        for other in self.groups.groups:
            if other.layer == group.layer and other.name < group.name and other.name.startswith("head"):
                before += next(tensor.shape[0] for tensor in other.tensors if tensor.short == "output")
        saved = {tensor.short: self.tensors[tensor.name] for tensor in group.tensors}
        if "output" in saved:
            rows = next(tensor.shape[0] for tensor in group.tensors if tensor.short == "output")
            saved["output"] = saved["output"][before : before + rows]
        return saved


@pytest.fixture(scope="module", params=["llama-3.2-1b", "qwen2.5-7b", "qwen3-8b"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    folder: Path = tmp_path_factory.mktemp("small") / "model"
    tensors = write_small_checkpoint(folder, request.param)
    with open_checkpoint(folder) as checkpoint:
        yield Small(tensors, checkpoint, plan_groups(group_specs(read_config(folder)), checkpoint))


async def through_slots(small: Small, catalog: WeightCatalog, group: WeightGroup) -> list[dict[str, torch.Tensor]]:
    """The group's tensors as the catalog shows them in a host slot, then in a device slot that was full of ones."""
    kind = catalog.kind(group.key)
    memories = {place: HostMemory(catalog.slot_bytes(place)[kind]) for place in ("host", "device")}
    memories["device"].tensor.fill_(255)
    source = CheckpointSource(catalog.host, small.checkpoint.files, Reading(lanes=2, chunk_bytes=4096))
    await source.read_into(group.key, memories["host"])
    await source.aclose()
    copy_bytes(memories["host"], memories["device"], catalog.copies(group.key))
    views = []
    places = [*memories.items(), ("unpacked", memories["host"])]  # the last as in a Mover of a user's
    for place, memory in places:
        slot = await Budget(place, {kind: [memory]}, lambda: 0.0).acquire(kind)
        views.append(catalog.tensors(Message(group.layer, group.name, 0, slot, READY)))
        for tensor in views[-1].values():
            start = tensor.data_ptr() - memory.tensor.data_ptr()
            assert 0 <= start <= start + tensor.nbytes <= memory.nbytes, "a view of the slot, not a copy"
    return views


@pytest.mark.parametrize("packed", [True, False])
async def test_every_tensor_is_the_checkpoints_in_the_host_and_on_the_device(small: Small, packed: bool) -> None:
    catalog = WeightCatalog(small.groups.groups, TWO_PLACES, 256 if packed else None)
    heads = [group.name for group in small.groups.groups if group.name.startswith("head")]
    assert len(heads) > 1, "the head must be cut for this test to mean something"
    for group in small.groups.groups:
        expected = small.expected(group)
        for views in await through_slots(small, catalog, group):
            assert views.keys() == expected.keys()
            for short, tensor in views.items():
                assert tensor.dtype == torch.bfloat16
                assert torch.equal(tensor, expected[short]), (group.layer, group.name, short)
    outputs = [small.expected(group)["output"] for group in small.groups.groups if group.name in heads]
    assert sum(map(len, outputs)) == small.groups.embed.rows


async def test_packed_tensors_are_aligned_on_the_device(small: Small) -> None:
    catalog = WeightCatalog(small.groups.groups, TWO_PLACES, 256)
    for group in small.groups.groups:
        _, views, _ = await through_slots(small, catalog, group)
        base = min(tensor.data_ptr() for tensor in views.values())
        assert all((tensor.data_ptr() - base) % 256 == 0 for tensor in views.values())
        copied = sum(copy.length for copy in catalog.copies(group.key))
        assert copied == group.needed_bytes, "no padding travels"


def test_groups_need_small_and_large_slots_in_turn_unless_there_is_only_one(small: Small) -> None:
    two = WeightCatalog(small.groups.groups, TWO_PLACES, 256)
    one = WeightCatalog(small.groups.groups, TWO_PLACES, 256, fewest_slots=1)
    assert two.order == tuple((group.layer, group.name) for group in small.groups.groups)
    assert [two.kind(key) for key in two.order] == [("attn", "ffn")[index % 2] for index in range(len(two.order))]
    assert {one.kind(key) for key in two.order} == {"ffn"}
    for place in ("host", "device"):
        sizes = two.slot_bytes(place)
        assert sizes.keys() == {"attn", "ffn"}
        largest = {half: max(two.group_bytes(place)[layer, half] for layer in (0, 1)) for half in sizes}
        assert all(sizes[half] <= largest[half] + BLOCK_BYTES * 4 for half in sizes), "a slice needs no larger slot"
        assert one.slot_bytes(place) == {"ffn": max(sizes.values())}


@pytest.mark.parametrize("packed", [True, False])
def test_a_slot_is_as_large_as_the_largest_group_of_its_kind_and_no_copy_leaves_it(small: Small, packed: bool) -> None:
    catalog = WeightCatalog(small.groups.groups, TWO_PLACES, 256 if packed else None)
    host, device = catalog.slot_bytes("host"), catalog.slot_bytes("device")
    ends: dict[str, list[int]] = {"attn": [], "ffn": []}
    for layer, name in catalog.order:
        kind = catalog.kind((layer, name))
        ends[kind].append(max(window.slot_offset + window.length for window in catalog.host[layer, name].windows))
        for copy in catalog.copies((layer, name)):
            assert 0 <= copy.source_offset < copy.source_offset + copy.length <= host[kind]
            assert 0 <= copy.target_offset < copy.target_offset + copy.length <= device[kind]
    assert host == {kind: max(sizes) for kind, sizes in ends.items()}
    if packed:
        assert all(device[kind] <= host[kind] for kind in host)
    else:
        assert device == host, "results must not depend on whether a slot was copied or handed on"


def test_needed_bytes_are_those_of_all_tensors_that_one_pass_streams(small: Small) -> None:
    catalog = WeightCatalog(small.groups.groups, TWO_PLACES, 256)
    tied = "lm_head.weight" not in small.tensors
    streamed = [tensor for name, tensor in small.tensors.items() if tied or "embed_tokens" not in name]
    assert catalog.needed_bytes == sum(tensor.nbytes for tensor in streamed)


def test_quantised_matrices_that_are_multiplied_together_lie_together(tmp_path: Path) -> None:
    for stored in ("int4", "fp8"):
        shape = {"layers": 1, "hidden_size": 256, "ffn_size": 512, "heads": 4, "kv_heads": 2, "vocabulary_size": 512}
        make_checkpoint(tmp_path / stored, "llama-3-8b", stored=stored, head_dim=64, **shape)
        config = read_config(tmp_path / stored)
        with open_checkpoint(tmp_path / stored) as checkpoint:
            groups = plan_groups(group_specs(config), checkpoint, config.quantization.format_of).groups
        catalog = WeightCatalog(groups, TWO_PLACES, 256)
        for group, together in zip(groups, MULTIPLIED_TOGETHER, strict=False):
            slot = torch.zeros(catalog.group_bytes("device")[group.key], dtype=torch.uint8)
            views = tensor_views(slot, catalog._device[group.key].offsets, group.tensors)
            matrices: list[Any] = [one.over(views) for one in group.matrices if one.short in together]
            (run,) = runs([one.encoded() for one in matrices], [None] * len(matrices))
            assert len(run) == len(together), (stored, together)


async def test_work_that_comes_behind_the_bytes_does_not_ask_how_far_they_are(small: Small) -> None:
    """A CUDA stream that is captured must not be asked for an event."""

    class Unasked:
        span = None

        def done(self) -> bool:
            raise AssertionError("asked")

        @property
        def error(self) -> BaseException | None:
            raise AssertionError("asked")

        async def wait(self) -> None:
            raise AssertionError("asked")

    catalog, arrived = WeightCatalog(small.groups.groups, TWO_PLACES, 256), Unasked()
    group, found = small.groups.groups[0], list[Any]()
    memory = HostMemory(catalog.slot_bytes("device")[catalog.kind(group.key)])
    slot = await Budget("device", {"attn": [memory]}, lambda: 0.0).acquire("attn")
    message = Message(group.layer, group.name, 0, slot, arrived)
    do_behind((arrived,), lambda: found.append(catalog.tensors(message)))
    assert found[0].keys() == {tensor.short for tensor in group.tensors}
