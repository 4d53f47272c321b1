"""What a decoder layer is made of, as data: of which kind each half is, and which tensors it holds.

The names of modules are those of the checkpoint; those of all families are alike but for the norms.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipeline.formats.parts import ATTN, FFN
from pipeline.formats.tensors import TensorSpec
from pipeline.models.feed_forwards import Experts, FeedForward
from pipeline.models.ropes import Rope
from pipeline.models.state_part import StatePart
from pipeline.models.streams import Streams

if TYPE_CHECKING:
    import torch

ATTENTION_MATRICES = ("q", "k", "v", "o")
PROJECTIONS = {
    "kv_a": "kv_a_proj_with_mqa",
    "index_q": "indexer.wq_b",
    "index_k": "indexer.wk",
    "index_weights": "indexer.weights_proj",
}
"""The modules of matrices whose names do not follow from their short ones."""

NormStyle: TypeAlias = Literal["plain", "wide", "plus_one"]
"""How a norm weighs: in the compute dtype, in fp32, or in fp32 by 1 + what is stored."""


def first_seen(position: int, window: int | None, chunk: int | None) -> int:
    """The first position that one sees through a window, from the beginning of its chunk on."""
    by_window = 0 if window is None else position + 1 - window
    return max(0, by_window, 0 if chunk is None else position // chunk * chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Softmax attention of heads in groups that share keys and values.

    A token sees the last `window` tokens, itself counted, and none before its `chunk` of so many positions; all, where
    these are None. Scores are multiplied by `scale`, and `softcap` bounds them by a tanh. With `sinks` each head has a
    logit more in its softmax, which weighs nothing. `rope` turns queries and keys; without one, nothing does.

    Queries and keys have norms before that, over each of the "heads" or over the whole "projection", and values one
    without weight with `value_norm`. With `values_are_keys` the projected keys are the values too. A `gated` one
    projects behind each head of the queries a gate, by whose sigmoid its output is multiplied. A `fused` one has one
    matrix for queries, keys and values.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    query_key_norms: Literal["heads", "projection"] | None = None
    value_norm: bool = False
    values_are_keys: bool = False
    gated: bool = False
    fused: bool = False

    module = "self_attn"

    @property
    def value_dim(self) -> int:
        """The channels of the values that are mixed for a head."""
        return self.head_dim

    @property
    def keeps_values(self) -> bool:
        """Whether values are kept beside keys; else they are channels of them."""
        return self.value_dim == self.head_dim

    @property
    def index_dim(self) -> int:
        """The channels of a key that are kept to choose by."""
        return 0

    def beside(self, positions: int, dtype: "torch.dtype") -> tuple[StatePart, ...]:
        """What is kept of so many positions together, beside what is kept of each."""
        return ()

    def projection(self, short: str) -> str:
        """The module of a matrix."""
        return _projection(short)

    def diagonal_blocks(self, short: str) -> int:
        """Into how many matrices one of these is cut: more than one where it is block diagonal."""
        return 1

    def first_seen(self, position: int) -> int:
        """The first position that one sees."""
        return first_seen(position, self.window, self.chunk)

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices, by short name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q": queries * 2 if self.gated else queries, "k": keys, "v": keys}
        if self.values_are_keys:
            del rows["v"]
        if self.fused:
            rows = {"qkv": sum(rows.values())}
        return {**{short: (count, hidden_size) for short, count in rows.items()}, "o": (hidden_size, queries)}

    def vectors(self, module: str) -> Iterator[TensorSpec]:
        """Return what it has beside matrices and their biases."""
        if self.query_key_norms is not None:
            for short, heads in (("q", self.heads), ("k", self.kv_heads)):
                items = self.head_dim if self.query_key_norms == "heads" else heads * self.head_dim
                yield TensorSpec(f"{short}_norm", f"{module}.{short}_norm.weight", (items,))
        if self.sinks:
            yield TensorSpec("sinks", f"{module}.sinks", (self.heads,))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNet:
    """A gated delta net (arXiv 2412.06464) behind a causal convolution of `kernel` tokens.

    Each sequence keeps for each of the value heads a matrix [key_dim, value_dim]. Value heads in groups share a key
    head. `grouped` says that the projections are stored as two matrices whose rows lie by key head.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    grouped: bool

    module = "linear_attn"

    @property
    def channels(self) -> int:
        """Those of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def matrices(self, module: str, hidden_size: int) -> Iterator[TensorSpec]:
        """The projections, whose names differ from those of attention."""
        values = self.value_heads * self.value_dim
        rows = {"qkv": self.channels, "z": values, "b": self.value_heads, "a": self.value_heads}
        if self.grouped:
            rows = {"qkvz": self.channels + values, "ba": 2 * self.value_heads}
        for short, count in rows.items():
            yield TensorSpec(short, f"{module}.in_proj_{short}.weight", (count, hidden_size))
        yield TensorSpec("o", f"{module}.out_proj.weight", (hidden_size, values))

    def vectors(self, module: str) -> Iterator[TensorSpec]:
        """Return what it has beside matrices."""
        yield TensorSpec("conv", f"{module}.conv1d.weight", (self.channels, 1, self.kernel))
        yield TensorSpec("rates", f"{module}.A_log", (self.value_heads,))
        yield TensorSpec("rate_biases", f"{module}.dt_bias", (self.value_heads,))
        yield TensorSpec("gated_norm", f"{module}.norm.weight", (self.value_dim,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """The modules of the norms of a layer, before and after each half, None where there is none."""

    before_mixer: str | None = "input_layernorm"
    after_mixer: str | None = None
    before_feed_forward: str | None = "post_attention_layernorm"
    after_feed_forward: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Two halves, each of which adds what it computes, times the `residual_multiplier`, to the hidden states.

    `biases` are the matrices of both that have one, also of a router and of experts, by their short names. With
    `scalar` the layer ends with a product by a stored number. Where hidden states are several `streams`, what a half
    computes is added to them as `hyper_connections` says.
    """

    hidden_size: int
    mixer: Attention | DeltaNet
    feed_forward: FeedForward | Experts
    biases: frozenset[str]
    norm_epsilon: float
    norm_style: NormStyle = "plain"
    norms: Norms = Norms()
    residual_multiplier: float = 1.0
    scalar: bool = False
    streams: Streams | None = None

    def specs(self, layer: str) -> dict[str, tuple[TensorSpec, ...]]:
        """The tensors of each part in compute order, under `layer` in the checkpoint."""
        norms = self.norms
        attn = [*self._norms(layer, norms.before_mixer, norms.after_mixer), *self._mixer(layer)]
        ffn = [
            *self._norms(layer, norms.before_feed_forward, norms.after_feed_forward),
            *self._feed_forward(layer),
        ]
        if self.scalar:
            ffn.append(TensorSpec("scalar", f"{layer}.layer_scalar", (1,)))
        if self.streams is not None:
            attn += self.streams.of_half(f"{layer}.hc_attn", self.hidden_size)
            ffn += self.streams.of_half(f"{layer}.hc_ffn", self.hidden_size)
        return {ATTN: tuple(attn), FFN: tuple(ffn)}

    def _norms(self, layer: str, before: str | None, after: str | None) -> Iterator[TensorSpec]:
        for short, module in (("norm", before), ("norm_after", after)):
            if module is not None:
                yield TensorSpec(short, f"{layer}.{module}.weight", (self.hidden_size,))

    def _mixer(self, layer: str) -> Iterator[TensorSpec]:
        match self.mixer:
            case Attention() as attention:
                module = f"{layer}.{attention.module}"
                blocks = attention.diagonal_blocks
                yield from self._matrices(module, attention.shapes(self.hidden_size), attention.projection, blocks)
                yield from attention.vectors(module)
            case DeltaNet() as net:
                module = f"{layer}.{net.module}"
                yield from net.matrices(module, self.hidden_size)
                yield from net.vectors(module)

    def expert_specs(self, layer: str) -> Iterator[tuple[TensorSpec, ...]]:
        """The tensors of each of its experts, none where it has no experts."""
        if isinstance(kind := self.feed_forward, Experts):
            shapes = kind.expert.shapes(self.hidden_size)
            for index in range(kind.count):
                yield tuple(kind.expert_tensors(layer, index, shapes, self.biases))

    def _feed_forward(self, layer: str) -> Iterator[TensorSpec]:
        match self.feed_forward:
            case FeedForward() as dense:
                yield from self._matrices(f"{layer}.{dense.module}", dense.shapes(self.hidden_size))
            case Experts() as experts:
                yield from experts.router_tensors(layer, self.hidden_size, self.biases)
                if (shared := experts.shared) is not None:
                    module, names = f"{layer}.{experts.shared_module}", dict(experts.names)
                    yield from self._matrices(module, shared.shapes(self.hidden_size), names.__getitem__)

    def _matrices(
        self,
        module: str,
        shapes: Mapping[str, tuple[int, int]],
        projection: Callable[[str], str] | None = None,
        diagonal_blocks: Callable[[str], int] = lambda short: 1,
    ) -> Iterator[TensorSpec]:
        """The matrices, then the biases of those that have one, an item for each row."""
        projection = projection or _projection
        for short, shape in shapes.items():
            name, blocks = f"{module}.{projection(short)}.weight", diagonal_blocks(short)
            yield TensorSpec(short, name, shape, diagonal_blocks=blocks)
        for short, (rows, _) in shapes.items():
            if short in self.biases:
                yield TensorSpec(f"{short}_bias", f"{module}.{projection(short)}.bias", (rows,))


def _projection(short: str) -> str:
    return PROJECTIONS.get(short, f"{short}_proj")
