"""The second half of a layer, as data: a feed-forward of its own, or experts of which a router chooses some.

The names of modules are those of the checkpoint.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipeline.formats.tensors import Stacked, TensorSpec

FEED_FORWARD_MATRICES = ("gate", "up", "down")
STACKS = {
    "gate": ("gate_up_proj", 0, 2),
    "up": ("gate_up_proj", 1, 2),
    "gate_up": ("gate_up_proj", 0, 1),
    "down": ("down_proj", 0, 1),
}
"""In which tensor those of all experts may be stored, as which part of how many."""
Activation: TypeAlias = Literal["silu", "gelu_tanh", "relu2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """A gate that is at most `limit` is multiplied by its sigmoid, which has the `slope`, and by up plus `offset`.

    Up is first brought within plus and minus `limit`.
    """

    limit: float
    slope: float
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """Two matrices with an activation of `size` channels between them; what is `gated` multiplies that by a third.

    A `fused` one has one matrix for gate and up, in this order, or with their rows in turns if it is `interleaved`.
    With a `clamp` that says how the gate acts, in place of the activation. Source of the gate: arXiv 2002.05202.
    """

    size: int
    activation: Activation = "silu"
    gated: bool = True
    fused: bool = False
    interleaved: bool = False
    clamp: Clamp | None = None

    module = "mlp"

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of its matrices, by short name."""
        wide = ("gate", "up") if self.gated else ("up",)
        rows = {"gate_up": 2 * self.size} if self.fused else dict.fromkeys(wide, self.size)
        return {**{short: (count, hidden_size) for short, count in rows.items()}, "down": (hidden_size, self.size)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How the logits of a router choose experts and weigh them; `wide` ones are computed in fp32 in every dtype.

    `scores` are a softmax or the sigmoids of all logits, or the roots of softplus of them. Experts with the highest
    ones are chosen; of a "softmax of the chosen", which is one of these alone, those with the highest logits. With a
    `choice_bias` a stored number for each expert is added for the choice. Where experts lie in several `groups` of one
    size, they are chosen from so many `kept` groups: those whose `best` experts, so many of each, have the highest sum.
    Those that are chosen `by_token` are looked up in a table by the token's id: scores only weigh them.

    The scores of the chosen, divided by their sum where they are `normalized`, times the `scale` weigh them.
    """

    scores: Literal["softmax", "softmax of the chosen", "sigmoid", "root of softplus"] = "softmax"
    normalized: bool = True
    wide: bool = False
    choice_bias: bool = False
    groups: int = 1
    kept: int = 1
    best: int = 2
    scale: float = 1.0
    by_token: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNorms:
    """The modules of the norms that experts have beside those of their half, under the layer.

    What all of them get has one `before_experts`, in place of the half's own, their sum has one, and so has what is
    shared.
    """

    before_experts: str
    after_experts: str
    after_shared: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Feed-forwards of which each row uses the `chosen` ones of `count`, by the `routing`: a mixture of experts.

    What they give is weighed and summed up. A `shared` one every row uses; with `shared_gated` it is multiplied by the
    sigmoid of a number that a row of weights gives. Source: arXiv 2101.03961, 2401.06066.

    A router with `scales` gets the hidden states behind a norm without weight, times a stored number for each channel
    and the root of 1 / channels; what weighs an expert is multiplied by a stored number, too.

    Names in the checkpoint, under the layer: the modules of the `router`, of its `scales`, of all experts and of what
    is shared, the `choice_bias`, and the `table` of what is chosen by token. `names` are those of matrices, under the
    number of an expert and of what is shared.
    Those of all experts may be stored as one tensor each, with gate and up in one; then they may be `transposed`.
    """

    count: int
    chosen: int
    routing: Routing
    expert: FeedForward
    shared: FeedForward | None = None
    shared_gated: bool = False
    norms: ExpertNorms | None = None
    router: str = "mlp.gate"
    scales: str | None = None
    choice_bias: str = "mlp.gate.e_score_correction_bias"
    table: str = "mlp.gate.tid2eid"
    module: str = "mlp.experts"
    names: tuple[tuple[str, str], ...] = (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj"))
    shared_module: str = "mlp.shared_expert"
    transposed: bool = False

    def router_tensors(self, layer: str, hidden_size: int, biases: Collection[str]) -> Iterator[TensorSpec]:
        """What chooses experts, the norms of their own, and the gate of the shared one."""
        router = f"{layer}.{self.router}"
        yield TensorSpec("router", f"{router}.weight", (self.count, hidden_size))
        if "router" in biases:
            yield TensorSpec("router_bias", f"{router}.bias", (self.count,))
        if self.routing.choice_bias:
            yield TensorSpec("choice_bias", f"{layer}.{self.choice_bias}", (self.count,))
        if self.scales is not None:
            yield TensorSpec("router_scale", f"{layer}.{self.scales}.scale", (hidden_size,))
            yield TensorSpec("expert_scales", f"{layer}.{self.scales}.per_expert_scale", (self.count,))
        if (norms := self.norms) is not None:
            yield TensorSpec("experts_norm", f"{layer}.{norms.before_experts}.weight", (hidden_size,))
            yield TensorSpec("experts_norm_after", f"{layer}.{norms.after_experts}.weight", (hidden_size,))
            yield TensorSpec("shared_norm_after", f"{layer}.{norms.after_shared}.weight", (hidden_size,))
        if self.shared_gated:
            yield TensorSpec("shared_gate", f"{layer}.{self.shared_module}_gate.weight", (1, hidden_size))

    def table_tensor(self, layer: str, vocabulary_size: int) -> TensorSpec:
        """The experts of each token, by its id."""
        name, shape = f"{layer}.{self.table}", (vocabulary_size, self.chosen)
        return TensorSpec("table", name, shape, dtypes=("I64", "I32"), are_plain=True)

    def expert_tensors(
        self, layer: str, index: int, shapes: Mapping[str, tuple[int, int]], biases: Collection[str]
    ) -> Iterator[TensorSpec]:
        """The matrices of one expert, then the biases of those that have one."""
        module = f"{layer}.{self.module}.{index}"
        names = dict(self.names)
        for short, shape in shapes.items():
            stacked = self._stacked(layer, index, short, "")
            yield TensorSpec(short, f"{module}.{names[short]}.weight", shape, stacked=stacked)
        for short, (rows, _) in shapes.items():
            if short in biases:
                name, stacked = f"{module}.{names[short]}.bias", self._stacked(layer, index, short, "_bias")
                yield TensorSpec(f"{short}_bias", name, (rows,), stacked=stacked)

    def _stacked(self, layer: str, index: int, short: str, ending: str) -> Stacked:
        """Where a tensor of an expert lies in that of all of them."""
        name, part, parts = STACKS[short]
        return Stacked(f"{layer}.{self.module}.{name}{ending}", self.count, index, part, parts, self.transposed)
