"""What is known about every weight group before any byte moves: the `Catalog` port over a checkpoint's layouts."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from actors.core.budget import Slot
from actors.core.errors import LineError
from actors.core.message import GroupKey, Message
from actors.core.ports import Copy
from pipeline.devices.lane import comes_behind
from pipeline.devices.memory import DeviceMemory
from pipeline.devices.port import Place
from pipeline.formats.matrix import Weights
from pipeline.formats.tensors import TensorRange, stored_dtype
from pipeline.groups.groups import WeightGroup
from pipeline.groups.layout import DeviceLayout, HostLayout, device_layout, host_layout
from pipeline.groups.slot_kinds import SlotKinds

if TYPE_CHECKING:
    import torch


class WeightCatalog:
    """The layout of every group in a host slot and in a device slot.

    With an alignment tensors lie packed in slots of the last place; otherwise exactly as in those of the first, so that
    results do not depend on whether a slot was copied or handed on. `places` are the names of the places, in order;
    `needed_bytes` are those of all tensors.
    """

    def __init__(
        self,
        groups: Sequence[WeightGroup],
        places: Sequence[Place],
        alignment_bytes: int | None = None,
        fewest_slots: int | None = None,
        slot_kinds: SlotKinds | None = None,
    ) -> None:
        self.places = tuple(place.name for place in places)
        self.order = tuple(group.key for group in groups)
        self._groups = {group.key: group for group in groups}
        self.host: dict[GroupKey, HostLayout] = {key: host_layout(group) for key, group in self._groups.items()}
        sizes = {group.key: group.needed_bytes for group in groups}
        self.slot_kinds = slot_kinds or SlotKinds.by_size(sizes, fewest_slots)
        self._device = {
            key: device_layout(self._groups[key], host, alignment_bytes)
            if alignment_bytes is not None
            else DeviceLayout(host.offsets, host.slot_bytes, (Copy(0, 0, host.slot_bytes),))
            for key, host in self.host.items()
        }
        self.needed_bytes = sum(layout.needed_bytes for layout in self.host.values())
        self._bytes = [{key: one.slot_bytes for key, one in found.items()} for found in (self.host, self._device)]
        self._slot_bytes = [self.slot_kinds.largest(one) for one in self._bytes]

    @property
    def groups(self) -> Sequence[WeightGroup]:
        """All of them, in compute order."""
        return tuple(self._groups.values())

    def kind(self, key: GroupKey) -> str:
        """The kind of slot that the group needs: its size class."""
        return self.slot_kinds.of[key]

    def copies(self, key: GroupKey) -> Sequence[Copy]:
        """What to copy from a host slot into a device slot."""
        return self._device[key].copies

    def tensors(self, message: Message[Slot]) -> "Mapping[str, torch.Tensor]":
        """The group's tensors by short name, as views of the slot that it is in. Write into them, not into the mapping.

        Raises LineError where there are no bytes yet, and the error with which they did not arrive.
        """
        self._check_arrived(message)
        return MappingProxyType(self._views(message))

    def weights(self, message: Message[Slot]) -> "Weights":
        """The same, and what multiplies: made when a group has come into another slot, and kept with its memory."""
        self._check_arrived(message)
        memory, key = message.at.buffer, message.key
        made = memory.made
        if not isinstance(made, _KeptWeights) or made.catalog is not self or made.key != key:
            tensors = self._views(message)
            weights = Weights(tensors, {one.short: one.over(tensors) for one in self._groups[key].matrices})
            memory.made = made = _KeptWeights(self, key, weights)
        return made.weights

    def _check_arrived(self, message: Message[Slot]) -> None:
        key = message.key
        if message.at is None:
            raise LineError(f"layer {key[0]} group {key[1]!r} has no bytes yet: they come with the disk_reader")
        if not comes_behind(message.event):  # a lane that records work must not be asked how far it is
            if not message.event.done():
                raise LineError(
                    f"the bytes of layer {key[0]} group {key[1]!r} are still on their way to {message.at.place} slot "
                    f"{message.at.index}: await self.landed(message), or launch the work after message.event"
                )
            if (error := message.event.error) is not None:
                raise error

    def _views(self, message: Message[Slot]) -> "dict[str, torch.Tensor]":
        key, place, memory = message.key, message.at.place, message.at.buffer
        # In slots of a user's Mover bytes lie as in those that they came from, which are in the same memory.
        packed = place == self.places[-1] or (place not in self.places and isinstance(memory, DeviceMemory))
        offsets = self._device[key].offsets if packed else self.host[key].offsets
        return tensor_views(memory.tensor, offsets, self._groups[key].tensors)

    def matrix_rows(self, key: GroupKey) -> int:
        """How many rows the first matrix of a group has."""
        return self._groups[key].matrices[0].rows

    def slot_bytes(self, place: str) -> Mapping[str, int]:
        """The size that a slot of each kind needs in a place: that of its largest group."""
        return self._slot_bytes[place != self.places[0]]

    def group_bytes(self, place: str) -> Mapping[GroupKey, int]:
        """The size that each group needs in a place, in compute order."""
        return self._bytes[place != self.places[0]]

    def alike(self, key: GroupKey) -> tuple[object, ...]:
        """Equal for groups of a kind that can be computed with each other's bytes, as a measurement does.

        Those of one dtype are weights wherever they are cut; packed numbers taken for scales might be no number.
        """
        tensors = self._groups[key].tensors
        dtypes = {tensor.dtype for tensor in tensors}
        said = dtypes if len(dtypes) == 1 else [(tensor.short, tensor.dtype, tensor.shape) for tensor in tensors]
        return (*said,)

    def laid_out(self, key: GroupKey) -> Hashable:
        """Equal for groups that lie alike in a slot of the last place, byte for byte, and are decoded alike."""
        group = self._groups[key]
        tensors = tuple((tensor.short, tensor.dtype, tensor.shape) for tensor in group.tensors)
        return (*self._device[key].offsets.items(),), tensors, tuple(one.form for one in group.matrices)

    def parameters(self) -> dict[GroupKey, int]:
        """How many numbers the matrices of each group have."""
        return {key: group.parameters for key, group in self._groups.items()}


@dataclass(frozen=True, slots=True)
class _KeptWeights:
    """What a group in a slot multiplies with, kept with the memory of the slot."""

    catalog: WeightCatalog
    key: GroupKey
    weights: Weights


def tensor_views(
    buffer: "torch.Tensor", offsets: Mapping[str, int], tensors: Sequence[TensorRange]
) -> dict[str, "torch.Tensor"]:
    """The tensors of a group by short name, each in its own shape and dtype, over a slot `buffer` (uint8 [bytes])."""
    views = {}
    for tensor in tensors:
        start = offsets[tensor.short]
        views[tensor.short] = buffer[start : start + tensor.length].view(stored_dtype(tensor.dtype)).view(tensor.shape)
    return views
