"""Experts that follow from the tokens alone: known when a pass begins, before any layer of it is computed."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from actors.core.event import Event
from actors.core.message import READY
from actors.core.ports import Copy
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.devices.memory import HostMemory, Memory
from pipeline.devices.port import Device
from pipeline.errors import CheckpointError
from pipeline.formats.tensors import stored_dtype
from pipeline.groups.groups import WeightGroup
from pipeline.models.feed_forwards import Experts
from pipeline.models.model_config import ModelConfig

ID_DTYPE = torch.int32


class TokenExperts:
    """Of each layer that has a table, the experts of the tokens of a pass, in host memory and on the device.

    Letters in names: V vocabulary, T rows of a pass, K experts that a row uses.
    """

    def __init__(self, tables: Mapping[int, torch.Tensor], most_rows: int, device: Device) -> None:
        """`tables` are those of layers, int32 [V, K]; a pass has at most so many rows, those of no token too."""
        self._tables = tables
        self._device = device
        self._most_rows = most_rows
        nbytes = self.nbytes([table.shape[1] for table in tables.values()], most_rows)
        self._on_device: Memory = device.device_memory(nbytes)
        on_device = self._on_device
        self._on_host = on_device if isinstance(on_device, HostMemory) else device.host_memory(nbytes)
        self._on_host.tensor.zero_()  # rows of no token have experts, too
        self._host_views, self._views = (self._parts(memory.tensor) for memory in (self._on_host, on_device))

    @staticmethod
    def nbytes(chosen: Sequence[int], most_rows: int) -> int:
        """The memory that it takes in each place, of layers in which a row uses so many experts."""
        return most_rows * sum(chosen) * ID_DTYPE.itemsize

    @staticmethod
    def table_bytes(tables: Sequence[WeightGroup]) -> int:
        """What the tables take in host memory."""
        return sum(one.tensors[0].shape[0] * one.tensors[0].shape[1] * ID_DTYPE.itemsize for one in tables)

    @classmethod
    def of(
        cls, config: ModelConfig, tables: Sequence[WeightGroup], checkpoint: Checkpoint, most_rows: int, device: Device
    ) -> Self | None:
        """Read the tables; None where there are none. Raises CheckpointError for an expert that there is not."""
        read = {one.layer: _read(one, checkpoint, config.layer_kinds[one.layer].feed_forward) for one in tables}
        return cls(read, most_rows, device) if read else None

    def begin(self, token_ids: Sequence[int], rows: int) -> Event:
        """Look up the experts of the tokens of a pass with so many rows; returns the event of their upload."""
        ids_T = torch.tensor(token_ids)
        for layer, table_VK in self._tables.items():
            torch.index_select(table_VK, 0, ids_T, out=self._host_views[layer][: len(token_ids)])
        if self._on_host is self._on_device:
            return READY
        copies, begin = [], 0
        for table_VK in self._tables.values():
            row_bytes = table_VK.shape[1] * ID_DTYPE.itemsize
            copies.append(Copy(begin, begin, rows * row_bytes))
            begin += self._most_rows * row_bytes
        return self._device.upload(self._on_host, self._on_device, copies, ())

    def of_tokens(self, layer: int, count: int) -> torch.Tensor:
        """The experts of so many tokens, int32 [T, K] in host memory."""
        return self._host_views[layer][:count]

    def of_rows(self, layer: int, begin: int, end: int) -> torch.Tensor:
        """Those of rows [begin, end), on the device, after the event of `begin`."""
        return self._views[layer][begin:end]

    def _parts(self, memory: torch.Tensor) -> dict[int, torch.Tensor]:
        items, views = memory.view(ID_DTYPE), {}
        for layer, table_VK in self._tables.items():
            own, items = items.tensor_split((self._most_rows * table_VK.shape[1],))
            views[layer] = own.view(self._most_rows, -1)
        return views


def _read(group: WeightGroup, checkpoint: Checkpoint, kind: object) -> torch.Tensor:
    (tensor,) = group.tensors
    count = kind.count if isinstance(kind, Experts) else 0
    content = bytearray(checkpoint.content(tensor.name))
    table_VK = torch.frombuffer(content, dtype=stored_dtype(tensor.dtype)).view(tensor.shape)
    lowest, highest = (int(one) for one in table_VK.aminmax())
    if lowest < 0 or highest >= count:
        wrong = lowest if lowest < 0 else highest
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r}: need experts from 0 to {count - 1}, have {wrong}; "
            "fetch the file again, or the config.json of these weights"
        )
    return table_VK.to(ID_DTYPE)
