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

    `window` is in tokens and counts the token that looks back; with None it sees all. `biases` are the matrices that
    have one, by their short names. `head_norm_epsilon` is that of the norm that each head of queries and keys has
    before it is turned; None where there is no such norm.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    biases: frozenset[str]
    head_norm_epsilon: float | None

    def specs(self, module: str) -> list[TensorSpec]:
        """Its tensors, under `module` in the checkpoint."""
        query_rows, kv_rows = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "q": (query_rows, self.hidden_size),
            "k": (kv_rows, self.hidden_size),
            "v": (kv_rows, self.hidden_size),
            "o": (self.hidden_size, query_rows),
        }
        normed = () if self.head_norm_epsilon is None else ("q", "k")
        norms = [TensorSpec(f"{short}_norm", f"{module}.{short}_norm.weight", (self.head_dim,)) for short in normed]
        return _projections(module, shapes, self.biases) + norms


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedFeedForward:
    """SwiGLU (arXiv 2002.05202) of `size` channels. `biases` are the matrices that have one, by their short names."""

    hidden_size: int
    size: int
    biases: frozenset[str]

    def specs(self, module: str) -> list[TensorSpec]:
        """Its tensors, under `module` in the checkpoint."""
        wide, narrow = (self.size, self.hidden_size), (self.hidden_size, self.size)
        return _projections(module, {"gate": wide, "up": wide, "down": narrow}, self.biases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Two halves. Each has a norm first, and adds what it computes to the hidden states."""

    attention: Attention
    feed_forward: GatedFeedForward
    norm_epsilon: float

    @property
    def biases(self) -> frozenset[str]:
        """The matrices of both halves that have one."""
        return self.attention.biases | self.feed_forward.biases

    def specs(self, layer: str) -> dict[str, tuple[TensorSpec, ...]]:
        """The tensors of each part in compute order, under `layer` in the checkpoint."""
        shape = (self.attention.hidden_size,)
        before, between = (f"{layer}.{norm}_layernorm.weight" for norm in ("input", "post_attention"))
        return {
            ATTN: (TensorSpec("norm", before, shape), *self.attention.specs(f"{layer}.self_attn")),
            FFN: (TensorSpec("norm", between, shape), *self.feed_forward.specs(f"{layer}.mlp")),
        }


def _projections(module: str, shapes: Mapping[str, tuple[int, int]], biases: frozenset[str]) -> list[TensorSpec]:
    """The matrices, then the biases of those that have one, an item for each row."""
    matrices = [TensorSpec(short, f"{module}.{short}_proj.weight", shape) for short, shape in shapes.items()]
    return matrices + [
        TensorSpec(f"{short}_bias", f"{module}.{short}_proj.bias", (rows,))
        for short, (rows, _) in shapes.items()
        if short in biases
    ]
