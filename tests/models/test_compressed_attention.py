"""Attention to a window and to compressed entries: rows of a sequence that has ended cost nothing."""

from dataclasses import replace

import torch

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.models.attention import LayerKV
from pipeline.models.compressed import GROUPED, CompressedAttention, Compressor
from pipeline.models.compressed_attention import mix
from pipeline.models.pass_rows import FEW_PARTS, Rows, SequenceRows
from pipeline.models.ropes import Rope
from pipeline.models.rotary import rotary

HIDDEN, POSITIONS, ROWS = 24, 16, 5
ENTRIES = Compressor(rate=4, channels=12, overlap=True)
KIND = CompressedAttention(
    heads=4,
    kv_heads=1,
    head_dim=12,
    scale=0.3,
    window=6,
    sinks=True,
    query_rank=10,
    groups=2,
    output_rank=8,
    norm_epsilon=1e-6,
    compressor=ENTRIES,
    index_heads=2,
    chosen=1,
    rope=Rope(theta=300.0, channels=4, interleaved=True),
    index=replace(ENTRIES, channels=8),
)


def weights() -> Weights:
    matrices = {short: DenseMatrix(torch.randn(shape) / 4) for short, shape in KIND.shapes(HIDDEN).items()}
    whole = matrices.pop(GROUPED).weight_FD
    matrices |= {f"{GROUPED}.{index}": DenseMatrix(one) for index, one in enumerate(whole.chunk(KIND.groups))}
    return Weights({one.short: torch.randn(one.shape) for one in KIND.vectors("")}, matrices)


def test_nothing_is_computed_for_rows_of_a_sequence_that_has_ended() -> None:
    torch.manual_seed(3)
    model, blocks = weights(), torch.tensor([[1], [0]])
    beside = [torch.zeros(2, *part.shape, dtype=part.dtype) for part in KIND.beside(POSITIONS, torch.float32)]
    kv = LayerKV(torch.zeros(2, 1, POSITIONS, 1, KIND.head_dim), KIND.head_dim, beside=beside)
    positions = torch.arange(ROWS)
    numbers = torch.stack((positions.repeat(2), torch.tensor([1] * ROWS + [0] * ROWS)), dim=1)
    stays, gone = SequenceRows(0, ROWS, 0, ROWS, blocks[0]), SequenceRows(ROWS, 2 * ROWS, 0, ROWS, blocks[1])
    rows = Rows(numbers, blocks, 2 * ROWS, 0, 0, FEW_PARTS, 1, lambda: [stays, replace(gone, ended=lambda: True)])
    assert KIND.rope is not None
    mixed_TA = mix(KIND, model, torch.randn(2 * ROWS, HIDDEN), rotary(KIND.rope, positions.repeat(2)), kv, rows)
    assert mixed_TA[:ROWS].all(1).all()
    assert not mixed_TA[ROWS:].any()
    assert all(part[1].any() for part in beside)
    assert not any(part[0].any() for part in beside)
