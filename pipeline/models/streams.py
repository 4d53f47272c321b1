"""Several residual streams, as data: hyper-connections, constrained to a manifold (arXiv 2512.24880).

The hidden states of a token are so many rows. Each half of a layer gets one row, a sum of them, and what it computes is
added to all of them, while they are mixed with each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.formats.tensors import TensorSpec

FUNCTION, BASE, SCALE = "streams", "streams_base", "streams_scale"
"""The short names of the tensors: a matrix, what is added to its product, and by what parts of that are multiplied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """`count` streams, which a matrix mixes: it is made doubly stochastic in `rounds`, with `epsilon` in sums."""

    count: int
    rounds: int
    epsilon: float

    @property
    def mixed(self) -> int:
        """How many numbers say for a token how a half adds to the streams, and how they mix."""
        return self.count + self.count**2

    def of_half(self, name: str, hidden_size: int) -> Iterator[TensorSpec]:
        """The tensors that make the weights of a half, under this beginning of their names."""
        return self._tensors(name, hidden_size, self.count + self.mixed, 3)

    def of_head(self, name: str, hidden_size: int) -> Iterator[TensorSpec]:
        """Those that make the weights with which the streams are summed up before the last norm.

        transformers saves them under the names that modules have there.
        """
        for spec in self._tensors(name, hidden_size, self.count, 1):
            yield replace(spec, names=(spec.name, spec.name.replace("hc_head_", "hc_head.hc_")))

    def _tensors(self, name: str, hidden_size: int, rows: int, scales: int) -> Iterator[TensorSpec]:
        yield TensorSpec(FUNCTION, f"{name}_fn", (rows, self.count * hidden_size), are_plain=True)
        yield TensorSpec(BASE, f"{name}_base", (rows,))
        yield TensorSpec(SCALE, f"{name}_scale", (scales,))
