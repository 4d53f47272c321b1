"""Hidden states on their way from one node to another: bytes of rows, as arguments of a call.

An argument of a call that is larger than 100 kB goes through the object store of both nodes, which takes about 6 ms
however large it is; smaller ones, up to some megabytes of them, travel in the call itself
(tests/records/2026-11-29_ray.md).
"""

from collections.abc import Sequence

import numpy as np
import torch

MOST_OF_ARGUMENT_BYTES = 96_000
MOST_OF_CALL_BYTES = 1 << 20
"""Beyond that the object store is faster."""


def to_arguments(hidden: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The bytes of rows, [T, D] each, as arguments of one call; none of none."""
    parts = [rows_TD.cpu().view(torch.uint8).view(-1).numpy() for rows_TD in hidden]
    told = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
    if told.nbytes > MOST_OF_CALL_BYTES:
        return [told]
    return [told[begin : begin + MOST_OF_ARGUMENT_BYTES] for begin in range(0, told.nbytes, MOST_OF_ARGUMENT_BYTES)]


def from_arguments(arguments: Sequence[np.ndarray], hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same rows in host memory, for those of these shapes and dtypes. Raises ValueError for other bytes."""
    need, have = sum(rows_TD.nbytes for rows_TD in hidden), sum(argument.nbytes for argument in arguments)
    if need != have:
        rows = sum(len(rows_TD) for rows_TD in hidden)
        raise ValueError(f"hidden states: need {need} bytes for {rows} rows, have {have}")
    told = torch.empty(need, dtype=torch.uint8)
    at = 0
    for argument in arguments:
        told.numpy()[at : at + argument.nbytes] = argument
        at += argument.nbytes
    parts = told.split([rows_TD.nbytes for rows_TD in hidden])
    return [part.view(rows_TD.dtype).view(rows_TD.shape) for part, rows_TD in zip(parts, hidden, strict=True)]
