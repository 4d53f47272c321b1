"""What experts add to the forecast of a pass: their computing, and its waits for those that are not there. Pure."""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.formats.parts import EXPERT
from pipeline.tools.bench.forecast import ExpertReads, Forecast, Rates
from pipeline.tools.routing.expert_demand import ExpertDemand


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """The mean of one expert: stored bytes, and parameters."""

    nbytes: float
    parameters: float


def with_experts(dense: Forecast, rates: Rates, demand: ExpertDemand, sizes: ExpertSizes) -> Forecast:
    """Add what passes use and miss, layer by layer, to the forecast of all else.

    Each layer asks for its experts when its router has spoken, and goes on when the last is computed: those that are
    there are computed while others come, and the last to come behind its arrival. What else moves is read meanwhile.
    """
    each = sizes.nbytes / rates.disk_bytes_per_second
    reads = rates.experts or ExpertReads(each, each)
    one = rates.computes[EXPERT].seconds(round(sizes.nbytes), round(sizes.parameters), dense.tokens)
    busy, read = demand.used * one, demand.missed[0]
    reading = np.where(read < 1, read * reads.first_seconds, reads.first_seconds + (read - 1) * reads.next_seconds)
    comes, moved = reading, {"disk": reading}
    if rates.h2d_bytes_per_second is not None:
        moved["H2D"] = demand.missed[-1] * (sizes.nbytes / rates.h2d_bytes_per_second)
        comes = np.maximum(reading, moved["H2D"])
    lasts = np.where(comes > 0, np.maximum(comes + one, busy), busy) + read * reads.overhead_seconds
    lasts += _contention_seconds(rates, reading, (demand.used - demand.missed[-1]) * one)
    busy_seconds, lasts_seconds = (float(each.sum(axis=1).mean()) for each in (busy, lasts))
    resources = {
        name: seconds + (float(moved[name].sum(axis=1).mean()) if name in moved else busy_seconds)
        for name, seconds in dense.resource_seconds.items()
    }
    behind_all = dense.pass_seconds + lasts_seconds - busy_seconds
    alone = rates.begin_seconds + dense.resource_seconds["compute"] + lasts_seconds
    return replace(dense, pass_seconds=max(behind_all, alone), resource_seconds=resources)


def _contention_seconds(rates: Rates, read: np.ndarray, compute: np.ndarray) -> np.ndarray:
    """`Rates.contention_seconds` of each layer: those that are there are computed while others are read."""
    seconds = [rates.contention_seconds(*pair) for pair in zip(read.flat, compute.flat, strict=True)]
    return np.array(seconds).reshape(read.shape)
