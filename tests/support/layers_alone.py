"""One decoder layer with random weights, and the rows of a single prompt."""

import torch
from support.attention_kinds import attention

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.models import decoder
from pipeline.models.attention import LayerKV
from pipeline.models.layers import FeedForward, Layer
from pipeline.models.pass_rows import Rows, SequenceRows
from pipeline.models.rotary import Rotary


class AloneLayer:
    """`read_bytes` are those of the keys and values that attention reads, as copies."""

    def __init__(
        self,
        rows: int,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        ffn_size: int,
        dtype: torch.dtype,
        *,
        head_norms: bool,
    ) -> None:
        kind = attention(heads, kv_heads, head_dim, query_key_norms="heads" if head_norms else None)
        self.layer = Layer(
            hidden_size=hidden_size,
            mixer=kind,
            feed_forward=FeedForward(size=ffn_size),
            biases=frozenset(),
            norm_epsilon=1e-5,
        )
        shapes = {**kind.shapes(hidden_size), **self.layer.feed_forward.shapes(hidden_size)}
        norms = {"norm": hidden_size, "q_norm": head_dim, "k_norm": head_dim}
        self._weights = Weights(
            {short: torch.ones(size, dtype=dtype) for short, size in norms.items()},
            {short: DenseMatrix((torch.randn(shape) / 64).to(dtype)) for short, shape in shapes.items()},
        )
        blocks, positions_T = torch.arange(-(-rows // 16)), torch.arange(rows)
        self._kv = LayerKV(torch.zeros(len(blocks), 2, 16, kv_heads, head_dim, dtype=dtype))
        sequence = SequenceRows(0, rows, 0, rows, blocks)
        numbers = torch.stack((positions_T, positions_T // 16), 1)
        self._rows = Rows(numbers, blocks.unsqueeze(0), rows, 0, 0, 1, 1, lambda: [sequence])
        self._turns = dict.fromkeys(filter(None, [kind.rope]), Rotary(*torch.randn(2, rows, 1, head_dim)))
        self._hidden_TD = torch.randn(rows, hidden_size).to(dtype)
        self.read_bytes = 2 * rows * kv_heads * head_dim * dtype.itemsize

    def attention(self) -> None:
        """Compute half of it."""
        decoder.attention_half(self.layer, self._weights, self._hidden_TD, self._kv, self._rows, self._turns)

    def ffn(self, by_formula: bool) -> None:
        """Compute the other half."""
        decoder.ffn_half(self.layer, self._weights, self._hidden_TD, by_formula)
