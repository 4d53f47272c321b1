"""What experts add to the forecast of a pass: their computing, and its waits for those that are not there. Pure."""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.formats.parts import EXPERT
from pipeline.generation.expert_split import MOST_ROWS, Missed, SplitRates, split
from pipeline.tools.bench.forecast import Forecast, Rates
from pipeline.tools.routing.expert_demand import ExpertDemand


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """The mean of one expert: stored bytes, and parameters; and how many a token uses in a layer."""

    nbytes: float
    parameters: float
    chosen: int


@dataclass(frozen=True, slots=True)
class LeftToCpu:
    """What the CPU computes of a layer's experts that host memory has, by the rates of both ways or `every` one."""

    rates: SplitRates
    every: bool

    def of(self, demand: ExpertDemand, tokens: int, chosen: int) -> tuple[np.ndarray, np.ndarray]:
        """How many in each layer and pass, and the seconds that they take; none in a pass of more rows than are split.

        Rows are taken to be spread evenly over the experts that are used, and what is read to be copied to the device.
        """
        kept = np.rint(demand.missed[-1] - demand.missed[0]).astype(int)
        if tokens > MOST_ROWS:
            return np.zeros_like(kept), np.zeros(kept.shape)
        rows = max(1, round(tokens * chosen / float(demand.used.mean())))
        counts = []
        for count in range(int(kept.max()) + 1):
            counts.append(count if self.every else len(split([Missed(one, rows) for one in range(count)], self.rates)))
        seconds = [(self.rates.rows_seconds + count * self.rates.on_cpu(rows)) * (count > 0) for count in counts]
        return np.array(counts)[kept], np.array(seconds)[kept]


def with_experts(
    dense: Forecast, rates: Rates, demand: ExpertDemand, sizes: ExpertSizes, left: LeftToCpu | None = None
) -> Forecast:
    """Add what passes use and miss, layer by layer, to the forecast of all else.

    Each layer asks for its experts when its router has spoken, and goes on when the last is computed: those that are
    there are computed while others come, and the last to come behind its arrival. Where it was measured how much longer
    a layer takes for what is read or copied, that is added. What else moves is read meanwhile. What is `left` to the
    CPU is not copied.
    """
    one = rates.computes[EXPERT].seconds(round(sizes.nbytes), round(sizes.parameters), dense.tokens)
    busy, read = demand.used * one, demand.missed[0]
    moved = {"disk": read * (sizes.nbytes / rates.disk_bytes_per_second)}
    on_cpu, cpu_seconds = (0, np.zeros(1)) if left is None else left.of(demand, dense.tokens, sizes.chosen)
    if rates.h2d_bytes_per_second is not None:
        moved["H2D"] = (demand.missed[-1] - on_cpu) * (sizes.nbytes / rates.h2d_bytes_per_second)
    if (waits := rates.expert_waits) is None:
        comes = (np.where(each > 0, each + one, 0.0) for each in moved.values())
        lasts = np.maximum(np.maximum.reduce([busy, *comes]), cpu_seconds)
    else:
        reading = _longer(read, waits.first_seconds, waits.next_seconds)
        copies = demand.missed[-1] - read - on_cpu
        copying = _longer(copies, waits.first_copied_seconds, waits.next_copied_seconds)
        lasts = busy + waits.beside_seconds + np.maximum(np.maximum(reading, copying), cpu_seconds)
    busy_seconds, lasts_seconds = (float(each.sum(axis=1).mean()) for each in (busy, lasts))
    resources = {
        name: seconds + (float(moved[name].sum(axis=1).mean()) if name in moved else busy_seconds)
        for name, seconds in dense.resource_seconds.items()
    }
    behind_all = dense.pass_seconds + lasts_seconds - busy_seconds
    alone = dense.alone_seconds + lasts_seconds
    return replace(dense, pass_seconds=max(behind_all, alone), resource_seconds=resources, alone_seconds=alone)


def _longer(counts: np.ndarray, first: float, more: float) -> np.ndarray:
    """Seconds for so many experts of a layer; of less than one, where counts are means, that share of the first."""
    return np.where(counts < 1, counts * first, first + (counts - 1) * more)
