"""How much a run of the tests looks at: what tells most by default, and everything with PENSTOCK_TESTS=all."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

EVERYTHING = os.environ.get("PENSTOCK_TESTS") == "all"


def cases(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Combinations of one value of each axis: as few as hold any two values of different axes together, or all."""
    product = list(itertools.product(*(range(len(axis)) for axis in axes)))
    missing = {pair for case in product for pair in _pairs(case)}
    chosen = []
    while missing and not EVERYTHING:
        chosen.append(max(product, key=lambda case: len(missing & _pairs(case))))
        missing -= _pairs(chosen[-1])
    return [tuple(axis[index] for axis, index in zip(axes, case, strict=True)) for case in chosen or product]


def in_turn(values: Sequence[Any], others: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each value with one of the others, in turn, or all combinations of them."""
    if EVERYTHING:
        return list(itertools.product(values, others))
    return list(zip(values, itertools.cycle(others), strict=False))


def _pairs(case: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(itertools.combinations(enumerate(case), 2))
