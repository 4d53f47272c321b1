"""Norms and gates on a GPU: one kernel each, of all kinds. Needs a GPU."""

import pytest
import torch

from pipeline.models import ops
from pipeline.models.feed_forwards import Activation, Clamp
from pipeline.models.layers import NormStyle
from pipeline.models.ropes import Rope
from pipeline.models.rotary import rotary

fused_ops = pytest.importorskip("pipeline.models.fused_ops", reason="its kernels need Triton")
pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_norms_and_gates_are_those_of_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(*shape, device="cuda").to(dtype) for shape in ((37, 5, 72), (72,)))
    gate, other = torch.randn(2, 37, 133, device="cuda").mul(3).to(dtype)
    styles: tuple[NormStyle, ...] = ("plain", "wide", "plus_one")
    activations: tuple[Activation, ...] = ("silu", "gelu_tanh", "relu2")
    fused = [fused_ops.rms_norm(x, weight, 1e-6, style) for style in styles]
    fused.append(fused_ops.rms_norm(x, None, 1e-6, "plain"))
    fused += [fused_ops.gate(gate.clone(), other, activation) for activation in (*activations, "sigmoid")]
    clamp = Clamp(limit=2.5, slope=1.3, offset=1.0)
    fused.append(fused_ops.clamped_gate(gate.clone(), other, clamp))
    monkeypatch.setattr(ops, "_kernels", lambda *kind: None)
    expected = [ops.rms_norm(x, weight, 1e-6, style) for style in styles]
    expected.append(ops.rms_norm(x, None, 1e-6))
    expected += [ops.gate(gate.clone(), other, activation, by_formula=True) for activation in activations]
    expected.append(ops.sigmoid_gate(other.clone(), gate.clone()))
    expected.append(ops.clamped_gate(gate.clone(), other, clamp))
    close = {"atol": 5e-6, "rtol": 5e-6} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "size", "turned"), [(5, 72, 24), (1, 64, 64), (64, 512, 64)])
@torch.no_grad()
def test_the_last_channels_turn_with_the_bits_of_torch(
    heads: int, size: int, turned: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, positions = torch.randn(37, heads, size, device="cuda").to(dtype), torch.arange(37, device="cuda") * 11
    turn = rotary(Rope(theta=300.0, channels=turned, interleaved=True), positions)
    fused = ops.turn_last(x.clone(), turn)
    monkeypatch.setattr(ops, "_kernels", lambda *kind: None)
    assert torch.equal(fused, ops.turn_last(x, turn))
