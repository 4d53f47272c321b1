"""What a decoder layer is made of, as data: of which kind each half is, and which tensors it holds.

The names of tensors are those that every supported family uses on disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.formats.parts import ATTN, FFN
from pipeline.formats.tensors import TensorSpec

ATTENTION_MATRICES = ("q", "k", "v", "o")
FEED_FORWARD_MATRICES = ("gate", "up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Softmax attention of heads in groups that share keys and values; rotary embedding turns queries and keys.

    `window` is in tokens and counts the token that looks back; with None it sees all. With `head_norms` each head of
    queries and keys has a norm before it is turned.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    head_norms: bool

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices."""
        query, kv = (self.heads * self.head_dim, hidden_size), (self.kv_heads * self.head_dim, hidden_size)
        return dict(zip(ATTENTION_MATRICES, (query, kv, kv, query[::-1]), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedFeedForward:
    """SwiGLU (arXiv 2002.05202) of `size` channels."""

    size: int

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices."""
        wide = (self.size, hidden_size)
        return dict(zip(FEED_FORWARD_MATRICES, (wide, wide, wide[::-1]), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Two halves. Each has a norm first, and adds what it computes to the hidden states.

    `biases` are the matrices of both that have one, by their short names.
    """

    hidden_size: int
    attention: Attention
    feed_forward: GatedFeedForward
    biases: frozenset[str]
    norm_epsilon: float

    def specs(self, layer: str) -> dict[str, tuple[TensorSpec, ...]]:
        """The tensors of each part in compute order, under `layer` in the checkpoint."""
        attn = self._half(f"{layer}.input_layernorm", f"{layer}.self_attn", self.attention.shapes(self.hidden_size))
        for short in ("q", "k") if self.attention.head_norms else ():
            name = f"{layer}.self_attn.{short}_norm.weight"
            attn.append(TensorSpec(f"{short}_norm", name, (self.attention.head_dim,)))
        shapes = self.feed_forward.shapes(self.hidden_size)
        ffn = self._half(f"{layer}.post_attention_layernorm", f"{layer}.mlp", shapes)
        return {ATTN: tuple(attn), FFN: tuple(ffn)}

    def _half(self, norm: str, module: str, shapes: Mapping[str, tuple[int, int]]) -> list[TensorSpec]:
        """The norm, the matrices, then the biases of those that have one, an item for each row."""
        biases = {short: rows for short, (rows, _) in shapes.items() if short in self.biases}
        return [
            TensorSpec("norm", f"{norm}.weight", (self.hidden_size,)),
            *(TensorSpec(short, f"{module}.{short}_proj.weight", shape) for short, shape in shapes.items()),
            *(TensorSpec(f"{short}_bias", f"{module}.{short}_proj.bias", (rows,)) for short, rows in biases.items()),
        ]
