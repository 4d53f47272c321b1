"""Latent attention as data, and what chooses the positions that it looks at."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.formats.tensors import TensorSpec
from pipeline.models.layers import Attention

OF_HEADS = "kv_b"
"""The matrix of latent attention that makes keys and values of each head; it is multiplied head by head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """What scores the positions that a token may look at (arXiv 2512.02556).

    A position has one key of `head_dim` channels, behind a layer norm, and a token has as many `heads` of queries,
    which are made of the latent of its queries. A score is the sum of products above 0, each times a weight that the
    token gives to its head. The first channels turn as those of attention do, in pairs of neighbours if `interleaved`.
    """

    heads: int
    head_dim: int
    interleaved: bool

    def shapes(self, hidden_size: int, query_rank: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices, by short name."""
        return {
            "index_q": (self.heads * self.head_dim, query_rank),
            "index_k": (self.head_dim, hidden_size),
            "index_weights": (self.heads, hidden_size),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention(Attention):
    """Multi-head latent attention (arXiv 2405.04434): of a token, all heads share a latent of `rank` channels, and the
    channels of a key that turn. Nothing else is kept.

    It is attention with one kv head, whose keys are what turns and behind it the latent, and whose values are the
    latent: the matrix that makes keys and values of it for each head is multiplied by the queries, and by what comes
    out. A head has queries and keys of `still_dim` channels that do not turn, in front of those that do, and values of
    `output_dim`. Queries are made of a latent of their own of `query_rank`, unless that is None. Both latents have
    norms, which add `latent_epsilon`.

    With a number of `chosen` positions a token looks at no more than so many: at those of the `indexer`, or where there
    is none, at those that were chosen in the last layer that has one.
    """

    rank: int
    query_rank: int | None
    still_dim: int
    output_dim: int
    latent_epsilon: float
    indexer: Indexer | None = None
    chosen: int | None = None

    @property
    def needs_choices(self) -> bool:
        """Whether it looks at what another layer has chosen."""
        return self.chosen is not None and self.indexer is None

    @property
    def value_dim(self) -> int:
        """The channels of the values that are mixed for a head."""
        return self.rank

    @property
    def index_dim(self) -> int:
        """The channels of a key that are kept to choose by."""
        return self.indexer.head_dim if self.indexer else 0

    @property
    def turned_dim(self) -> int:
        """The channels of a key that turn."""
        return self.head_dim - self.rank

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices, by short name."""
        queries = self.heads * (self.still_dim + self.turned_dim)
        made = {"q": (queries, hidden_size)}
        if self.query_rank is not None:
            made = {"q_a": (self.query_rank, hidden_size), "q_b": (queries, self.query_rank)}
        return {
            **made,
            "kv_a": (self.rank + self.turned_dim, hidden_size),
            OF_HEADS: (self.heads * (self.still_dim + self.output_dim), self.rank),
            "o": (hidden_size, self.heads * self.output_dim),
            **(self.indexer.shapes(hidden_size, self.query_rank or hidden_size) if self.indexer else {}),
        }

    def vectors(self, module: str) -> Iterator[TensorSpec]:
        """Return what it has beside matrices and their biases."""
        if self.query_rank is not None:
            yield TensorSpec("q_a_norm", f"{module}.q_a_layernorm.weight", (self.query_rank,))
        yield TensorSpec("kv_a_norm", f"{module}.kv_a_layernorm.weight", (self.rank,))
        if self.indexer is not None:
            for short, last in (("index_norm", "weight"), ("index_norm_bias", "bias")):
                yield TensorSpec(short, f"{module}.indexer.k_norm.{last}", (self.indexer.head_dim,))
