"""The kernels of the gated delta net: what the CPU computes, with bits that depend on neither cuts nor company."""

import asyncio
import dataclasses
from array import array
from collections.abc import Iterator, Sequence

import pytest
import torch

from pipeline.devices.cuda import CudaDevice
from pipeline.formats.matrix import Weights
from pipeline.generation.batching import Piece
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.sequence import RunningSequence
from pipeline.models import delta_net
from pipeline.models.delta_chunks import DeltaRule
from pipeline.models.delta_state import DeltaInputs, LayerState, StateParts
from pipeline.models.layers import DeltaNet
from pipeline.models.pass_rows import Rows

fused_delta = pytest.importorskip("pipeline.models.fused_delta", reason="its kernels need Triton")
pytestmark = pytest.mark.cuda
KINDS = {
    "qwen3_5": DeltaNet(key_heads=2, value_heads=6, key_dim=128, value_dim=128, kernel=4, grouped=False),
    "odd": DeltaNet(key_heads=3, value_heads=3, key_dim=24, value_dim=40, kernel=3, grouped=False),
}
SLOTS, EDGE, PADDED = 5, 48, 3
TOKENS = {0: 70, 1: 41, 2: 1}
"""Of three sequences, of which the first begins with zeros and has a snapshot at an edge; each has the slot of its
number, and the others begin with those behind."""


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    opened = CudaDevice()
    yield opened
    asyncio.run(opened.aclose())


def state_of(kind: DeltaNet, dtype: torch.dtype, *, carries: bool, like: LayerState | None = None) -> LayerState:
    """Slots full of what was there before, or of what another state has."""
    parts = StateParts.of(kind, dtype, carries=carries)
    state = parts.view(torch.zeros(SLOTS, parts.nbytes + 64, dtype=torch.uint8, device="cpu" if carries else "cuda"))
    state.matrices.normal_() if like is None else state.matrices.copy_(like.matrices)
    latest = state.inputs[:, 1 - kind.kernel :]
    latest.normal_() if like is None else latest.copy_(like.inputs[:, 1 - kind.kernel :])
    return state


class Sequences:
    """What each sequence brings, and the rows of pieces of them."""

    def __init__(self, device: CudaDevice, kind: DeltaNet, dtype: torch.dtype) -> None:
        torch.manual_seed(kind.key_dim)
        self.device, self.kind = device, kind
        self.weights = Weights({one.short: torch.randn(one.shape, device="cuda") / 2 for one in kind.vectors("")}, {})
        sizes = kind.channels, kind.value_heads * kind.value_dim, 2 * kind.value_heads
        self.inputs = {
            one: DeltaInputs(*(torch.randn(count, size, device="cuda").to(dtype) for size in sizes))
            for one, count in TOKENS.items()
        }
        self._running = {
            one: RunningSequence(array("i", [1] * count), SamplingParameters(), frozenset(), None, 8)
            for one, count in TOKENS.items()
        }
        for one in self._running.values():
            one.blocks = [0] * 8

    def rows(self, cuts: Sequence[tuple[int, int, int]]) -> tuple[DeltaInputs, Rows]:
        """Some tokens [begin, end) of some sequences, and rows without a token behind them."""
        pieces = []
        for one, begin, end in cuts:
            read = one if begin else {0: -1, 1: 3, 2: 2}[one]
            snapshots = ((EDGE - 1 - begin, 4),) if one == 0 and begin < EDGE <= end else ()
            pieces.append(Piece(self._running[one], begin, (1,) * (end - begin), 0, 0, read, one, snapshots))
        count = sum(end - begin for _, begin, end in cuts) + PADDED
        sent = PassInputs(self.device, count, len(TOKENS), 200)
        asyncio.run(_wait(sent.send(pieces, [(0, count)])))
        parts = [self.inputs[one].rows(begin, end) for one, begin, end in cuts]
        parts.append(self.inputs[0].rows(0, PADDED))
        together = (torch.cat([getattr(part, name.name) for part in parts]) for name in dataclasses.fields(DeltaInputs))
        return DeltaInputs(*together), sent.rows(0, count)

    def mixed(self, cuts: Sequence[tuple[int, int, int]], state: LayerState) -> list[torch.Tensor]:
        """What comes out for each piece; rows behind them are zeros."""
        inputs, rows = self.rows(cuts)
        mixed_TN = fused_delta.mix(self.kind, self.weights, inputs, state, rows, 1e-6)
        *parts, padding = mixed_TN.split([*(end - begin for _, begin, end in cuts), PADDED])
        assert not padding.any()
        return parts


async def _wait(event: object) -> None:
    await event.wait()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_kernels_compute_what_the_cpu_does(
    device: CudaDevice, kind: DeltaNet, dtype: torch.dtype, tolerance: float
) -> None:
    some, state = Sequences(device, kind, dtype), state_of(kind, dtype, carries=False)
    expected = state_of(kind, dtype, carries=True, like=state)
    got = torch.cat(some.mixed([(one, 0, count) for one, count in TOKENS.items()], state)).cpu()
    inputs, rows = some.rows([(one, 0, count) for one, count in TOKENS.items()])
    on_cpu = DeltaInputs(inputs.conv.cpu(), inputs.output_gate.cpu(), inputs.gates.cpu())
    weights = Weights({short: tensor.cpu() for short, tensor in some.weights.tensors.items()}, {})
    rule, want = DeltaRule.of(kind, weights, dtype, 1e-6), torch.zeros_like(on_cpu.output_gate)
    for one in rows.by_sequence()[:-1]:
        span = slice(one.begin, one.end)
        delta_net.mix_sequence(rule, on_cpu.rows(one.begin, one.end), expected, one, want[span])
    for ours, theirs in ((got, want[: len(got)]), (state.matrices.cpu(), expected.matrices)):
        assert (ours - theirs).float().norm() < tolerance * theirs.float().norm()
    assert (state.inputs.cpu() == expected.inputs[:, 1 - kind.kernel :]).all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_bits_depend_neither_on_cuts_nor_on_company(device: CudaDevice, kind: DeltaNet) -> None:
    some, state = Sequences(device, kind, torch.float32), state_of(kind, torch.float32, carries=False)
    cut = state_of(kind, torch.float32, carries=False, like=state)
    whole = some.mixed([(one, 0, count) for one, count in TOKENS.items()], state)
    passes = [[(0, 0, 1)], [(0, 1, 3), (1, 0, 2)], [(1, 2, 3), (2, 0, 1), (0, 3, 50)], [(0, 50, 70), (1, 3, 41)]]
    parts: dict[int, list[torch.Tensor]] = {one: [] for one in TOKENS}
    for cuts in passes:
        for (one, _, _), part in zip(cuts, some.mixed(cuts, cut), strict=True):
            parts[one].append(part)
    assert all((torch.cat(parts[one]) == whole[one]).all() for one in TOKENS)
    assert (cut.matrices == state.matrices).all()
    assert (cut.inputs == state.inputs).all()
