"""The gated delta net on a CPU: against transformers, and over where prompts are cut."""

import random

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
VECTORS = {"conv": "conv1d.weight", "rates": "A_log", "rate_biases": "dt_bias", "gated_norm": "norm.weight"}
KINDS = [
    DeltaNet(key_heads=3, value_heads=6, key_dim=12, value_dim=20, kernel=4, grouped=grouped) for grouped in (False, True)
] + [DeltaNet(key_heads=2, value_heads=2, key_dim=24, value_dim=8, kernel=3, grouped=False)]
SLOTS = 4


class RowByRow(DenseMatrix):
    """Bits of its products depend on no other row, as those of blocks of rows do not."""

    def apply(self, x_TD: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
        return torch.cat([super(RowByRow, self).apply(x_TD[index : index + 1], bias_F) for index in range(len(x_TD))])


def theirs(kind: DeltaNet) -> torch.nn.Module:
    """The module of transformers, with random weights."""
    config = (Qwen3NextConfig if kind.grouped else Qwen3_5TextConfig)(
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
    module = (Qwen3NextGatedDeltaNet if kind.grouped else Qwen3_5GatedDeltaNet)(config, 0)
    for parameter in (module.dt_bias, module.norm.weight):
        torch.nn.init.normal_(parameter)
    return module.eval()


def weights_of(module: torch.nn.Module) -> Weights:
    """The same weights, as a group has them."""
    stored = module.state_dict()
    matrices = {name.removeprefix("in_proj_").removesuffix(".weight"): RowByRow(x) for name, x in stored.items()
        if "proj" in name}
    matrices["out"] = matrices.pop("out_proj")
    return Weights({short: stored[name] for short, name in VECTORS.items()}, matrices)


def empty_state(kind: DeltaNet) -> LayerState:
    """Slots full of what was there before."""
    parts = StateParts.of(kind, torch.float32, carries=True)
    state = parts.view(torch.zeros(SLOTS, parts.nbytes + 64, dtype=torch.uint8))
    for part in (state.matrices, state.inputs, state.gates):
        part.normal_()
    return state


def rows_of(*sequences: SequenceRows) -> Rows:
    """Of what comes after the other."""
    none = torch.zeros(0, 0, dtype=torch.int64)
    return Rows(none, none, sequences[-1].end, 0, 0, 1, 1, lambda: sequences)


def piece(start: int, count: int, prompt_tokens: int, begin: int = 0, read: int = 0, write: int = 0, **more: object) -> SequenceRows:
    """Tokens of one sequence in a slot."""
    table = torch.zeros(0, dtype=torch.int64)
    return SequenceRows(begin, begin + count, start, prompt_tokens, table, state_read=read if start else -1, state_write=write, **more)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.inference_mode()
def test_a_prompt_and_its_answer_are_what_transformers_computes(kind: DeltaNet) -> None:
    module, state, hidden_TD = theirs(kind), empty_state(kind), torch.randn(90, HIDDEN)
    want_TD = module(hidden_TD.unsqueeze(0))[0]
    got_TD = mix(kind, weights_of(module), hidden_TD, state, rows_of(piece(0, 90, 75)), EPSILON)
    torch.testing.assert_close(got_TD, want_TD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.inference_mode()
def test_bits_depend_neither_on_cuts_nor_on_company(kind: DeltaNet) -> None:
    module, prompt, total = theirs(kind), 75, 90
    hidden_TD, weights = torch.randn(total, HIDDEN), weights_of(module)
    whole = empty_state(kind)
    want_TD = mix(kind, weights, hidden_TD, whole, rows_of(piece(0, total, prompt)), EPSILON)
    for seed in range(6):
        state, position, parts = empty_state(kind), 0, []
        draw = random.Random(seed)
        while position < total:
            count = min(draw.randint(1, 40), total - position)
            parts.append(mix(kind, weights, hidden_TD[position : position + count], state, rows_of(piece(position, count, prompt)), EPSILON))
            position += count
        assert (torch.cat(parts) == want_TD).all(), seed
        assert (state.matrices[0] == whole.matrices[0]).all()
