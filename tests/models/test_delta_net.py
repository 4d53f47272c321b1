"""The gated delta net on a CPU: against transformers, and over where prompts are cut, who shares a pass, and slots."""

import random
from typing import Any

import pytest
import torch
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.models.delta_net import mix
from pipeline.models.delta_state import LayerState, StateParts
from pipeline.models.layers import DeltaNet
from pipeline.models.pass_rows import Rows, SequenceRows

HIDDEN, EPSILON = 40, 1e-5
KINDS = {
    "apart": DeltaNet(key_heads=3, value_heads=6, key_dim=12, value_dim=20, kernel=4, grouped=False),
    "grouped": DeltaNet(key_heads=3, value_heads=6, key_dim=12, value_dim=20, kernel=4, grouped=True),
    "equal heads": DeltaNet(key_heads=2, value_heads=2, key_dim=24, value_dim=8, kernel=3, grouped=False),
}
PROMPT, TOTAL = 75, 84
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class RowByRow(DenseMatrix):
    """Products whose bits depend on no other row, as those of a fixed number of rows do not."""

    def apply(self, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        """See `Matrix`."""
        return torch.cat([super(RowByRow, self).apply(x_1D, bias_F) for x_1D in x_TD.split(1)])


def theirs(kind: DeltaNet) -> torch.nn.Module:
    """The module of transformers, with random weights."""
    config: Any = (Qwen3NextConfig if kind.grouped else Qwen3_5TextConfig)(
        hidden_size=HIDDEN,
        linear_num_key_heads=kind.key_heads,
        linear_num_value_heads=kind.value_heads,
        linear_key_head_dim=kind.key_dim,
        linear_value_head_dim=kind.value_dim,
        linear_conv_kernel_dim=kind.kernel,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        rms_norm_eps=EPSILON,
    )
    torch.manual_seed(kind.value_dim)
    module = (Qwen3NextGatedDeltaNet if kind.grouped else Qwen3_5GatedDeltaNet)(config, 0).eval()
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) / 4)
    return module


def ours(kind: DeltaNet, module: torch.nn.Module) -> Weights:
    """The same weights, as a group has them."""
    stored = {f"linear_attn.{name}": tensor for name, tensor in module.state_dict().items()}
    matrices = {spec.short: RowByRow(stored[spec.name]) for spec in kind.matrices("linear_attn", HIDDEN)}
    return Weights({spec.short: stored[spec.name] for spec in kind.vectors("linear_attn")}, matrices)


def used_state(kind: DeltaNet) -> LayerState:
    """Slots full of what others left there."""
    parts = StateParts.of(kind, torch.float32, carries=True)
    state = parts.view(torch.zeros(4, parts.nbytes + 64, dtype=torch.uint8))
    for part in (state.matrices, state.inputs, state.gates):
        part.normal_()
    return state


def piece(begin: int, start: int, count: int, slot: int, *, read: int | None = None, **other: Any) -> SequenceRows:
    """Rows of a sequence with a slot, which has what was computed of it before, unless it begins with another one."""
    read = slot if read is None else read
    table = torch.zeros(0, dtype=torch.int64)
    read = read if start else -1
    return SequenceRows(begin, begin + count, start, PROMPT, table, state_read=read, state_write=slot, **other)


def computed(
    kind: DeltaNet, weights: Weights, hidden_TD: torch.Tensor, state: LayerState, *pieces: SequenceRows
) -> torch.Tensor:
    """What comes out for the rows of these pieces, one behind the other."""
    none = torch.zeros(0, 0, dtype=torch.int64)
    rows = Rows(none, none, len(hidden_TD), 0, 0, 1, 1, lambda: pieces)
    return weights.project("o", mix(kind, weights, hidden_TD, state, rows, EPSILON))


@every_kind
@torch.inference_mode()
def test_a_prompt_and_its_answer_are_what_transformers_computes(kind: DeltaNet) -> None:
    module, hidden_TD = theirs(kind), torch.randn(TOTAL, HIDDEN)
    got_TD = computed(kind, ours(kind, module), hidden_TD, used_state(kind), piece(0, 0, TOTAL, 0))
    torch.testing.assert_close(
        got_TD, module(hidden_TD.unsqueeze(0))[0], rtol=1e-3, atol=2e-4
    )  # theirs is off by as much


@every_kind
@torch.inference_mode()
def test_bits_depend_neither_on_cuts_nor_on_company(kind: DeltaNet) -> None:
    weights, hidden_TD, other_TD = ours(kind, theirs(kind)), torch.randn(TOTAL, HIDDEN), torch.randn(TOTAL, HIDDEN)
    alone = used_state(kind)
    want_TD = computed(kind, weights, hidden_TD, alone, piece(0, 0, TOTAL, 0))
    for seed in range(5):
        draw, state, at, got = random.Random(seed), used_state(kind), 0, []
        while at < TOTAL:
            count = min(draw.choice((1, 3, 16, 21, 40)), TOTAL - at)
            both_TD = torch.cat((other_TD[at : at + count], hidden_TD[at : at + count]))
            pieces = piece(0, at, count, 2), piece(count, at, count, 1)
            got.append(computed(kind, weights, both_TD, state, *pieces)[count:])
            at += count
        assert (torch.cat(got) == want_TD).all(), seed
        assert (state.matrices[1] == alone.matrices[0]).all(), seed


@torch.inference_mode()
def test_a_sequence_goes_on_from_a_snapshot_and_leaves_it_as_it_is() -> None:
    kind, edge = KINDS["apart"], 48
    weights, hidden_TD, state = ours(kind, theirs(kind)), torch.randn(TOTAL, HIDDEN), used_state(kind)
    computed(kind, weights, hidden_TD[:20], state, piece(0, 0, 20, 0))
    want_TD = computed(kind, weights, hidden_TD[20:], state, piece(0, 20, TOTAL - 20, 0, snapshots=[(edge - 21, 3)]))
    for _ in range(2):
        rest = piece(0, edge, TOTAL - edge, 1, read=3)
        assert (computed(kind, weights, hidden_TD[edge:], state, rest) == want_TD[edge - 20 :]).all()


@torch.inference_mode()
def test_rows_of_a_sequence_that_has_ended_are_zeros_and_its_slot_stays() -> None:
    kind = KINDS["apart"]
    state = used_state(kind)
    before = state.matrices.clone()
    mixed_TD = computed(
        kind, ours(kind, theirs(kind)), torch.randn(20, HIDDEN), state, piece(0, 0, 20, 0, ended=lambda: True)
    )
    assert not mixed_TD.any()
    assert (state.matrices == before).all()
