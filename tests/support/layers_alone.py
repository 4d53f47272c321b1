"""One decoder layer with random weights, and the rows of a single prompt."""

from collections.abc import Mapping

import torch

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import ATTN, FFN
from pipeline.models import decoder
from pipeline.models.attention import LayerKV
from pipeline.models.layers import Attention, Layer
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.rotary import rotary


class AloneLayer:
    """`read_bytes` are those of the keys and values that attention reads, as copies."""

    def __init__(self, layer: Layer, rows: int, dtype: torch.dtype) -> None:
        self.layer, kind = layer, layer.mixer
        assert isinstance(kind, Attention)
        specs = {part: {spec.short: spec.shape for spec in some} for part, some in layer.specs("layer").items()}
        self._weights = {part: _random(shapes, dtype) for part, shapes in specs.items()}
        blocks, positions_T = torch.arange(-(-rows // 16)), torch.arange(rows)
        self._kv = LayerKV(torch.zeros(len(blocks), 2, 16, kind.kv_heads, kind.head_dim, dtype=dtype))
        sequence = SequenceRows(0, rows, 0, rows, blocks)
        numbers = torch.stack((positions_T, positions_T // 16), 1)
        self._rows = Rows(numbers, blocks.unsqueeze(0), rows, 0, 0, 1, 1, lambda: [sequence])
        self._turns = {kind.rope: rotary(kind.rope, positions_T)} if kind.rope else {}
        self._hidden_TD = torch.randn(rows, layer.hidden_size).to(dtype)
        self.read_bytes = 2 * rows * kind.kv_heads * kind.head_dim * dtype.itemsize

    def attention(self) -> None:
        """Compute half of it."""
        decoder.attention_half(self.layer, self._weights[ATTN], self._hidden_TD, self._kv, self._rows, self._turns)

    def ffn(self, by_formula: bool) -> None:
        """Compute the other half."""
        decoder.ffn_half(self.layer, self._weights[FFN], self._hidden_TD, by_formula)


def _random(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Weights:
    tensors = {short: (torch.randn(shape) / 64).to(dtype) for short, shape in shapes.items()}
    return Weights(tensors, {short: DenseMatrix(one) for short, one in tensors.items() if one.ndim == 2})
