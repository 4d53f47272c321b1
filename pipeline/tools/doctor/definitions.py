"""Checks that quantised matrices are decoded, and multiplied by, as their formats define it: on a CPU, in plain torch.

The kernels of a device decode inside their products. A row that is 0 but for one 1 picks a column of the matrix, which
must come out of them bit for bit; other rows tell whether what they add up is right.
Letters in names: T rows, D columns, F rows of a matrix.
"""

import asyncio
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.api import Model
from pipeline.formats.dense import Dense
from pipeline.formats.matrix import Matrix, StoredMatrix
from pipeline.formats.tensors import stored_dtype
from pipeline.system.sizes import human_bytes
from pipeline.tools.doctor.check import Check, guarded

ROWS = (1, 16, 64)
"""Kernels for few rows and for many differ."""
PARAMETERS = 1 << 25
"""Of larger matrices some rows are checked, where rows can be cut."""
ROWS_AT_ONCE = 256
ROUNDING = 8
"""So many units in the last place of a number as large as its terms together a sum may be off."""
TIMES = 3
WRONG = "do not trust what this machine computes with these weights: report the format, the device and what differs"


async def check_decoding(folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> list[Check]:
    """A check for each format that the model has. Raises ConfigError and CheckpointError as opening it does."""
    checks = []
    async with Model.open(folder, **{**settings, "residency": False}) as model:
        devices, dtype = {one.device.torch_device for one in model.runtime.sections}, model.runtime.dtype
        formats = [one for one in model.runtime.formats.items() if one[0] != Dense.name]
        for device in sorted(devices, key=str):
            for name, matrices in formats:
                say(f"decoding: {name}")
                alike = {(matrix.rows, matrix.columns): matrix for matrix in reversed(matrices)}
                check = _Check(name, [*alike.values()], device, dtype)
                checks.append(await asyncio.to_thread(guarded, "decoding", check.made))
    return checks


class _Check:
    """Of one format: a matrix of each shape, on a device, computed in a dtype."""

    def __init__(self, name: str, matrices: Sequence[StoredMatrix], device: torch.device, dtype: torch.dtype) -> None:
        self._name, self._matrices, self._device, self._dtype = name, matrices, device, dtype

    def made(self) -> Check:
        """Compare, and measure."""
        nbytes, decoding_seconds, product_seconds = 0, 0.0, 0.0
        for stored in map(_some_rows, self._matrices):
            here, there = (_read(stored, device) for device in (torch.device("cpu"), self._device))
            if fault := self._fault(stored, _defined(here, stored, self._dtype), there):
                return Check("decoding", "bad", f"{self._name}: {stored.tensors[0].name!r}: {fault}", WRONG)
            row_TD = torch.ones(1, stored.columns, dtype=self._dtype, device=self._device)
            nbytes += sum(tensor.length for tensor in stored.tensors)
            decoding_seconds += _seconds(functools.partial(there.decoded, self._dtype))
            product_seconds += _seconds(functools.partial(there.apply, row_TD))
        products = f"in products with {', '.join(map(str, ROWS))} rows"
        equal = f"as defined, bit for bit, in {len(self._matrices)} shapes, and {products}"
        decoded, multiplied = (human_bytes(nbytes / seconds) for seconds in (decoding_seconds, product_seconds))
        rates = f"decoded at {decoded}/s, with the product of a row {multiplied}/s, of stored bytes"
        return Check("decoding", "good", f"{self._name}: {equal} · {rates}")

    def _fault(self, stored: StoredMatrix, defined_FD: torch.Tensor, there: Matrix) -> str:
        """What differs from the definition; empty where nothing does."""
        if not torch.equal(there.decoded(self._dtype).cpu(), defined_FD):
            return f"is not decoded on {self._device} as plain torch decodes it"
        generator, norms_F = torch.Generator().manual_seed(0), defined_FD.float().norm(dim=1)
        for rows in ROWS:
            columns_T = torch.randint(stored.columns, (rows,), generator=generator)
            picking_TD = torch.nn.functional.one_hot(columns_T, stored.columns).to(self._dtype)
            if not torch.equal(self._product(there, picking_TD), defined_FD[:, columns_T].T):
                return f"columns come otherwise out of a product with {rows} rows"
            x_TD = torch.randn(rows, stored.columns, generator=generator).to(self._dtype)
            off_TF = (self._product(there, x_TD).float() - x_TD.float() @ defined_FD.float().T).abs()
            unit = ROUNDING * torch.finfo(self._dtype).eps
            if not bool((off_TF <= unit * x_TD.float().norm(dim=1, keepdim=True) * norms_F).all()):
                return f"a product with {rows} rows is off by up to {off_TF.max().item():.3g}"
        return ""

    def _product(self, matrix: Matrix, x_TD: torch.Tensor) -> torch.Tensor:
        return matrix.apply(x_TD.to(self._device)).cpu()


def _seconds(work: Callable[[], torch.Tensor]) -> float:
    """The least of a few; one number is fetched, so that the device is done."""
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        work()[-1, -1].item()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _defined(matrix: Matrix, stored: StoredMatrix, dtype: torch.dtype) -> torch.Tensor:
    """In plain torch, a few rows at a time."""
    firsts = range(0, stored.rows, ROWS_AT_ONCE)
    blocks = [matrix.decoded_rows(first, min(first + ROWS_AT_ONCE, stored.rows), dtype) for first in firsts]
    return torch.cat(blocks)


def _some_rows(stored: StoredMatrix) -> StoredMatrix:
    if stored.row_step is None or stored.rows * stored.columns <= PARAMETERS:
        return stored
    step = math.lcm(stored.row_step, 8)
    return stored.slice(0, min(stored.rows, max(1, PARAMETERS // stored.columns // step) * step))


def _read(stored: StoredMatrix, device: torch.device) -> Matrix:
    views = {}
    for tensor in stored.tensors:
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            content = bytearray(file.read(tensor.length))
        views[tensor.short] = torch.frombuffer(content, dtype=stored_dtype(tensor.dtype)).view(tensor.shape).to(device)
    return stored.over(views)
