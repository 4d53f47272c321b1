"""Experts with few rows each where the CPU is the device: one call for gate and up of all that are there, and one for
down, in the way of `grouped_experts` on a GPU.

A row has the bits that `expert_product` gives it. Where an expert lies in its slot is found once for all that lie
alike: by its tensors that takes as long as multiplying by one row.

Letters in names: D hidden, F channels of an expert, R rows of the output, P places of rows that use an expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from pipeline.formats import cpu_compiled
from pipeline.formats.decoding import encoded_of
from pipeline.formats.dense import DenseMatrix, joined
from pipeline.formats.encoded import FEW_ROWS
from pipeline.formats.matrix import Weights
from pipeline.formats.parts import GATE_UP
from pipeline.models.decoder import gated
from pipeline.models.feed_forwards import FeedForward

if TYPE_CHECKING:
    from pipeline.formats.cpu_products import Alike, OneOfSeveral

MANY_ROWS = FEW_ROWS
"""An expert with more rows is multiplied by itself."""


@dataclass(frozen=True, slots=True)
class CpuPlaces:
    """Where the numbers and scales of gate, up and down lie in a slot, in bytes; and how gate and up, and down, are
    stored, for the `products` that multiply by them.
    """

    offsets: tuple[int, ...]
    wide: "Alike"
    down: "Alike"
    products: ModuleType


def places(kind: FeedForward, weights: Weights, slot: int) -> CpuPlaces | None:
    """Where an expert lies in the slot at this address; None where kernels of this CPU do not take it as it lies."""
    if kind.fused or not kind.gated or any(weights.bias(short) is not None for short in weights.matrices):
        return None
    if (found := _kernels_for(weights)) is None:
        return None
    products, matrices = found
    each: list[OneOfSeveral | None] = [products.one_of_several(one) for one in matrices]
    known = [one for one in each if one is not None]
    if len(known) < len(each) or known[0].alike != known[1].alike:  # gate and up are multiplied by as one
        return None
    addresses = [address for one in known for address in one.addresses]
    if not all(_lies_in(weights, address) for address in addresses):  # but in a copy, as parts at odd places are
        return None
    return CpuPlaces(tuple(address - slot for address in addresses), known[0].alike, known[2].alike, products)


def multiply(
    kind: FeedForward,
    stored: CpuPlaces,
    runs: Sequence[tuple[Sequence[int], int, int]],
    input_TD: torch.Tensor,
    order_P: torch.Tensor,
    chosen: int,
    _between: torch.Tensor,
    output_RD: torch.Tensor,
) -> None:
    """Multiply by experts, each with its addresses and the places in the order where its rows begin and end.

    Place p of the order is a row of the output, and what its row of the input is times the experts that a row uses.
    """
    wide, narrow, begin = list[tuple[int, int, int, int, int]](), list[tuple[int, int, int, int, int]](), 0
    for (gate, gate_scales, up, up_scales, down, down_scales), first, last in runs:
        end = begin + last - first
        wide += [(gate, gate_scales, 0, begin, end), (up, up_scales, kind.size, begin, end)]
        narrow.append((down, down_scales, 0, begin, end))
        begin = end
    multiply_by = stored.products.grouped_products
    place_P = torch.cat([order_P[first:last] for _, first, last in runs])
    input_PD = input_TD.index_select(0, place_P // chosen)
    gate_PF, up_PF = multiply_by(stored.wide, wide, input_PD, 2 * kind.size).chunk(2, dim=1)
    between_PF = gated(kind, gate_PF.contiguous(), up_PF, by_formula=False)
    output_RD.index_copy_(0, place_P, multiply_by(stored.down, narrow, between_PF, input_TD.shape[1]))


def _kernels_for(weights: Weights) -> tuple[ModuleType, Sequence[object]] | None:
    """What multiplies by gate, up and down, if `expert_product` would have it do so, and these as it takes them."""
    matrices = [weights.matrices[short] for short in (*GATE_UP, "down")]
    dense = [one.weight_FD for one in matrices if isinstance(one, DenseMatrix)]
    if len(dense) == len(matrices):
        both = joined(matrices[0], matrices[1], torch.bfloat16)
        applied = dense if both is None else [both.weight_FD, dense[2]]
        # A row of a matrix is as long as the rows that it multiplies.
        found = [cpu_compiled.dense_products(one, one[:1]) for one in applied if one.dtype == torch.bfloat16]
        products = found[0] if len(found) == len(applied) and all(found) else None
        return None if products is None else (products, dense)
    encoded = [one for one in map(encoded_of, matrices) if one is not None]
    if len(encoded) < len(matrices):
        return None
    products = cpu_compiled.products(torch.empty(1, encoded[0].shape[1], dtype=torch.bfloat16))
    return None if products is None else (products, encoded)


def _lies_in(weights: Weights, address: int) -> bool:
    """Whether it is in memory of these tensors."""
    storages = [one.untyped_storage() for one in weights.tensors.values()]
    return any(0 <= address - one.data_ptr() < one.nbytes() for one in storages)
