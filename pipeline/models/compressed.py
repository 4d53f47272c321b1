"""Attention to a window, and to what all tokens before were compressed into, as data: that of DeepSeek-V4."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.formats.tensors import TensorSpec
from pipeline.models.layers import Attention
from pipeline.models.state_part import StatePart

if TYPE_CHECKING:
    import torch

GROUPED = "o_a"
"""The block diagonal matrix behind the heads."""
PROJECTIONS = {
    "q_a": "wq_a",
    "q_b": "wq_b",
    "kv": "wkv",
    GROUPED: "wo_a",
    "o": "wo_b",
    "entry_kv": "compressor.wkv",
    "entry_gate": "compressor.wgate",
    "index_q": "indexer.wq_b",
    "index_weights": "indexer.weights_proj",
    "index_kv": "indexer.compressor.wkv",
    "index_gate": "indexer.compressor.wgate",
}
"""The modules of matrices, as DeepSeek names them."""
MODULES = {"entry": "compressor", "index": "indexer.compressor"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressor:
    """Makes an entry of each `rate` tokens, a window: for each channel the mean of what is projected of them.

    A softmax weighs the tokens, of gates that are projected, too, plus a stored number for each place in a window. With
    `overlap` the tokens of the window before are in the mean, of which other channels are projected.
    """

    rate: int
    channels: int
    overlap: bool

    @property
    def projected(self) -> int:
        """The channels that are projected of a token."""
        return self.channels * (2 if self.overlap else 1)

    def entries(self, positions: int) -> int:
        """The most windows whose last token lies in a block of so many positions; at least the room for one."""
        return max(1, positions // self.rate)

    def shapes(self, name: str, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices, by short name."""
        return {f"{name}_{what}": (self.projected, hidden_size) for what in ("kv", "gate")}

    def vectors(self, name: str, module: str) -> Iterator[TensorSpec]:
        """What it has beside matrices."""
        yield TensorSpec(f"{name}_bias", f"{module}.ape", (self.rate, self.projected), are_plain=True)
        yield TensorSpec(f"{name}_norm", f"{module}.norm.weight", (self.channels,))

    def parts(self, positions: int, dtype: "torch.dtype") -> tuple[StatePart, StatePart]:
        """What is kept beside so many positions: the means that are not complete behind the last of them, and entries.

        Of a mean there are for each channel the highest gate, the sum of weights and the weighed sum. With overlap
        there is another one, of the next entry.
        """
        import torch  # here, so that what only describes a model needs no torch

        running = StatePart((2 if self.overlap else 1, 3, self.channels), torch.float32)
        return running, StatePart((self.entries(positions), self.channels), dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention(Attention):
    """Attention whose keys are its values, with one kv head and sinks; the last channels of a head turn.

    A token looks at the `window`, and at the entries of the windows of the `compressor` that are complete, if it has
    one. With a number of `chosen` entries it looks at no more than so many: those whose keys, which the `index` makes
    as the compressor makes entries, score highest for `index_heads` queries, see `latents.Indexer`.

    Queries are made of a latent of `query_rank`. What comes out is turned back, and of each of the `groups` of heads a
    matrix makes `output_rank` channels. All norms add `norm_epsilon`, and those of queries have no weight.
    """

    query_rank: int
    groups: int
    output_rank: int
    norm_epsilon: float
    compressor: Compressor | None = None
    index: Compressor | None = None
    index_heads: int = 0
    chosen: int | None = None

    module = "attn"

    @property
    def keeps_values(self) -> bool:
        """Whether values are kept beside keys."""
        return False

    @property
    def compressors(self) -> dict[str, Compressor]:
        """The compressors by how the names of their tensors begin: "entry", and "index" where there is an indexer."""
        both = {"entry": self.compressor, "index": self.index}
        return {name: one for name, one in both.items() if one is not None}

    def beside(self, positions: int, dtype: "torch.dtype") -> tuple[StatePart, ...]:
        """What is kept of so many positions beside their keys."""
        return tuple(part for one in self.compressors.values() for part in one.parts(positions, dtype))

    def projection(self, short: str) -> str:
        """The module of a matrix."""
        return PROJECTIONS[short]

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices, by short name."""
        heads = self.heads * self.head_dim
        index = (
            {
                "index_q": (self.index_heads * self.index.channels, self.query_rank),
                "index_weights": (self.index_heads, hidden_size),
            }
            if self.index
            else {}
        )
        compressed = [one.shapes(name, hidden_size) for name, one in self.compressors.items()]
        return {
            "q_a": (self.query_rank, hidden_size),
            "q_b": (heads, self.query_rank),
            "kv": (self.head_dim, hidden_size),
            GROUPED: (self.groups * self.output_rank, heads // self.groups),
            "o": (hidden_size, self.groups * self.output_rank),
            **index,
            **{short: shape for shapes in compressed for short, shape in shapes.items()},
        }

    def diagonal_blocks(self, short: str) -> int:
        """Into how many matrices one of these is cut."""
        return self.groups if short == GROUPED else 1

    def vectors(self, module: str) -> Iterator[TensorSpec]:
        """Return what it has beside matrices and their biases."""
        yield TensorSpec("q_a_norm", f"{module}.q_norm.weight", (self.query_rank,))
        names = f"{module}.kv_norm.weight", f"{module}.norm.weight"  # the second is that which transformers saves
        yield TensorSpec("kv_norm", names[0], (self.head_dim,), names)
        yield TensorSpec("sinks", f"{module}.attn_sink", (self.heads,))
        for name, one in self.compressors.items():
            yield from one.vectors(name, f"{module}.{MODULES[name]}")
