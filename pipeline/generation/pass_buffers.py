"""Where the rows of a pass are computed: memory that is taken once, so that no address changes from pass to pass."""

from collections.abc import Mapping
from typing import TypeAlias

import torch

from pipeline.devices.memory import Memory
from pipeline.devices.port import Device
from pipeline.models.model_config import ModelConfig
from pipeline.models.ropes import Rope
from pipeline.models.rotary import Rotary
from pipeline.models.row_blocks import RowBlocks

HIDDEN, ROTARY, LOGITS = "hidden states", "rotary embedding", "logits"
_Table: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Cosines and sines of a rope, [rows, 1, channels], and growths of queries, [rows, 1, 1], where there are any."""


class PassBuffers:
    """Hidden states of `most_rows` tokens, and once more of those that get logits; rotary angles; logits.

    All is taken once, as a micro-batch goes from lane to lane: memory that one CUDA stream frees while another still
    reads it would be handed out again too early.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        dtype: torch.dtype,
        blocks: RowBlocks,
        most_rows: int,
        most_logit_rows: int,
    ) -> None:
        self._config = config
        self._dtype = dtype
        self._rows = blocks.padded(most_rows)
        sizes = self.sizes(config, dtype, blocks, most_rows, most_logit_rows)
        self._memory = {name: device.device_memory(nbytes) for name, nbytes in sizes.items()}
        items = self._memory[HIDDEN].tensor.view(dtype)
        of_pass, of_logits = items.tensor_split((self._rows * config.hidden_width,))
        self._hidden = of_pass.view(-1, config.hidden_width)
        self._scored, self._normed = (one.view(-1, config.hidden_size) for one in (of_pass, of_logits))
        items, self._tables = self._memory[ROTARY].tensor.view(torch.float32), dict[Rope, _Table]()
        for rope in config.ropes:
            turns, growth, items = items.tensor_split((2 * self._rows * rope.channels, self._rows * _items(rope)))
            cos, sin = turns.view(2, self._rows, 1, -1)
            self._tables[rope] = cos, sin, growth.view(-1, 1, 1) if rope.query_growth else None

    @staticmethod
    def sizes(
        config: ModelConfig, dtype: torch.dtype, blocks: RowBlocks, most_rows: int, most_logit_rows: int
    ) -> Mapping[str, int]:
        """The bytes of each buffer."""
        rows, logit_rows = blocks.padded(most_rows), blocks.padded(most_logit_rows)
        return {
            HIDDEN: (rows * config.hidden_width + logit_rows * config.hidden_size) * dtype.itemsize,
            ROTARY: sum(rows * _items(rope) for rope in config.ropes) * torch.float32.itemsize,
            LOGITS: logit_rows * config.vocabulary_size * torch.float32.itemsize,
        }

    @property
    def logits_memory(self) -> Memory:
        """The memory of the logits."""
        return self._memory[LOGITS]

    def hidden(self, begin: int, end: int) -> torch.Tensor:
        """The hidden states of rows [begin, end) of the pass, [T, D]; each half of a layer overwrites them.

        Where they are several streams, these lie side by side.
        """
        return self._hidden[begin:end]

    def scored(self, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of what is scored, [R, D], in the place of the first hidden states."""
        return self._scored[begin:end]

    @property
    def all_hidden(self) -> torch.Tensor:
        """The hidden states of all rows of a pass."""
        return self.hidden(0, self._rows)

    def normed(self, begin: int, end: int) -> torch.Tensor:
        """The final hidden states of rows [begin, end) of those that get logits, [R, D]."""
        return self._normed[begin:end]

    def logits(self, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of the logits, fp32, [R, V]."""
        return self._view(LOGITS, torch.float32, self._config.vocabulary_size)[begin:end]

    def rotary(self, begin: int, end: int) -> Mapping[Rope, Rotary]:
        """The turns of rows [begin, end) of the pass, of each rope of the model."""
        tables = {}
        for rope, (cos, sin, growth) in self._tables.items():
            grows = None if growth is None else growth[begin:end]
            tables[rope] = Rotary(cos[begin:end], sin[begin:end], grows, rope.interleaved)
        return tables

    def _view(self, name: str, dtype: torch.dtype, columns: int) -> torch.Tensor:
        return self._memory[name].tensor.view(dtype).view(-1, columns)


def _items(rope: Rope) -> int:
    """How many numbers a row of its table has."""
    return 2 * rope.channels + (rope.query_growth is not None)
