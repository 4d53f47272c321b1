"""What halves of a layer take while they are computed, by torch's own count, against what is planned for them."""

import functools
from collections.abc import Callable

import pytest
import torch
from support.layers_alone import AloneLayer
from torch.profiler import ProfilerActivity, profile

from pipeline.formats.dense import DenseMatrix
from pipeline.formats.matrix import Weights
from pipeline.models.activations import embedding_bytes, half_bytes, head_bytes
from pipeline.models.decoder import output_slice
from pipeline.models.ops import rms_norm
from pipeline.models.outside import PLAIN

ROWS = 512
LIBRARY_BYTES = 1 << 20
"""A little that the library of products has of its own."""


def most_bytes(work: Callable[[], object]) -> int:
    """The most that is allocated at a time beside what was there before."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        work()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "ffn_size", "head_norms", "by_formula"),
    [(8, 2, 3072, False, False), (16, 8, 2048, True, False), (8, 8, 512, False, False), (8, 2, 3072, False, True)],
)
@torch.inference_mode()
def test_halves_take_no_more_than_planned_and_little_less(
    heads: int, kv_heads: int, ffn_size: int, head_norms: bool, by_formula: bool, dtype: torch.dtype
) -> None:
    one = AloneLayer(ROWS, 512, heads, kv_heads, 64, ffn_size, dtype, head_norms=head_norms)
    taken = max(most_bytes(one.attention), most_bytes(lambda: one.ffn(by_formula))) - one.read_bytes
    planned = ROWS * half_bytes(one.layer, dtype, fused=False, by_formula=by_formula)
    assert taken < planned + LIBRARY_BYTES
    assert planned < 1.25 * taken


@pytest.mark.parametrize("slice_rows", [2048, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_the_head_and_the_embedding_take_no_more_than_planned(dtype: torch.dtype, slice_rows: int) -> None:
    hidden, weight = torch.randn(ROWS, 256).to(dtype), torch.randn(slice_rows, 256).to(dtype)
    some = torch.arange(ROWS)
    norm = most_bytes(lambda: rms_norm(hidden[some], weight[0], 1e-5))
    product = most_bytes(functools.partial(output_slice, PLAIN, Weights({}, {"output": DenseMatrix(weight)}), hidden))
    planned = ROWS * head_bytes(256, slice_rows, dtype, fused=False)
    assert planned / 1.25 < max(norm, product) < planned + LIBRARY_BYTES
    decoded = most_bytes(lambda: hidden.to(dtype, copy=True))
    assert decoded <= ROWS * embedding_bytes(256, 64, dtype)
