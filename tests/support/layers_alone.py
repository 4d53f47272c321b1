"""One decoder layer with random weights, and the rows of a single prompt."""

import math
from collections.abc import Iterable

import torch

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import ATTN, FFN
from pipeline.formats.tensors import TensorSpec
from pipeline.models import decoder
from pipeline.models.attention import LayerKV
from pipeline.models.delta_state import LayerState, StateParts
from pipeline.models.layers import DeltaNet, Layer
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.ropes import Rope
from pipeline.models.rotary import Rotary, rotary
from pipeline.state.kv_layout import KvLayout


class AloneLayer:
    """`read_bytes` are those of the keys and values that attention reads, as copies."""

    def __init__(self, layer: Layer, rows: int, dtype: torch.dtype) -> None:
        self.layer, kind = layer, layer.mixer
        self._weights = {part: random_weights(some, dtype) for part, some in layer.specs("layer").items()}
        blocks, positions_T = torch.arange(-(-rows // 16)), torch.arange(rows)
        sequence = SequenceRows(0, rows, 0, rows, blocks, state_write=0)
        self._turns: dict[Rope, Rotary] = {}
        self._kv: LayerKV | LayerState
        self.read_bytes = 0
        if isinstance(kind, DeltaNet):
            parts = StateParts.of(kind, dtype, carries=True)
            self._kv = parts.view(torch.zeros(1, parts.nbytes, dtype=torch.uint8))
        else:
            layout = KvLayout.of(kind, len(blocks), dtype)
            self._kv = layout.view(torch.zeros(layout.layer_bytes, dtype=torch.uint8))
            self._turns = {kind.rope: rotary(kind.rope, positions_T)} if kind.rope else {}
            self.read_bytes = sum(layout.row_bytes) * rows
        numbers = torch.stack((positions_T, positions_T // 16), 1)
        self._rows = Rows(numbers, blocks.unsqueeze(0), rows, 0, 0, 1, 1, lambda: [sequence])
        width = layer.hidden_size * (layer.streams.count if layer.streams else 1)
        self._hidden_TD = torch.randn(rows, width).to(dtype)

    def attention(self) -> None:
        """Compute half of it."""
        decoder.attention_half(self.layer, self._weights[ATTN], self._hidden_TD, self._kv, self._rows, self._turns)

    def ffn(self, by_formula: bool) -> None:
        """Compute the other half."""
        decoder.ffn_half(self.layer, self._weights[FFN], self._hidden_TD, by_formula)


def random_weights(specs: Iterable[TensorSpec], dtype: torch.dtype) -> Weights:
    """Small random tensors, one behind the other, as they multiply."""
    shapes = {short: shape for spec in specs for short, shape in _blocks(spec)}
    sizes = [math.prod(shape) for shape in shapes.values()]
    items = (torch.randn(sum(sizes)) / 64).to(dtype).split(sizes)
    tensors = {short: one.view(shape) for one, (short, shape) in zip(items, shapes.items(), strict=True)}
    return Weights(tensors, {short: DenseMatrix(one) for short, one in tensors.items() if one.ndim == 2})


def _blocks(spec: TensorSpec) -> list[tuple[str, tuple[int, ...]]]:
    """The tensor, or the matrices that it is cut into."""
    if (count := spec.diagonal_blocks) == 1:
        return [(spec.short, spec.shape)]
    return [(f"{spec.short}.{index}", (spec.shape[0] // count, *spec.shape[1:])) for index in range(count)]
