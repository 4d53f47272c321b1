"""Which of a layer's experts that the device has not the CPU computes, by the rates of both ways: decisions alone.

An expert is either copied to the device, one behind the other, or multiplied by on the CPU, from its slot in host
memory: a copy takes as long for one row as for many, a product on the CPU does not. The question is that of Fiddler
(arXiv 2402.07033), here with the queues of both ways.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.engine.expert_room import ExpertRoom
from pipeline.generation.pass_rates import DISK_BYTES_PER_SECOND, LINK_BYTES_PER_SECOND, PassRates

MOST_ROWS = 64
"""A pass of more rows leaves nothing to the CPU: as a prompt it uses most experts, and most of these for many rows."""
HANDLING_SECONDS = 50e-6
"""What the host takes for each expert that is copied, until its computation can be launched."""
ROWS_SECONDS = 100e-6
"""What a layer takes until the CPU has its rows and can begin, and then until the device has what came out."""


@dataclass(frozen=True, slots=True)
class Missed:
    """An expert that the device has not, how many rows of the pass use it, and whether it must be read."""

    index: int
    rows: int
    is_read: bool = False


@dataclass(frozen=True, slots=True)
class ProductSeconds:
    """What a call takes beside its products, and each of these, by rising numbers of rows."""

    call: float
    each: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class SplitRates:
    """Seconds for one expert over the link and from the disk; on the CPU by rising numbers of rows.

    `rows_seconds` is what a layer takes in any case to bring its rows to the CPU, and what that gives back.
    """

    upload_seconds: float
    read_seconds: float
    product_seconds: Mapping[int, float]
    rows_seconds: float

    def __str__(self) -> str:
        """The rates in milliseconds, for messages."""
        products = ", ".join(f"{1e3 * seconds:.2f} for {rows}" for rows, seconds in self.product_seconds.items())
        on_cpu = f"{1e3 * self.rows_seconds:.2f} ms and, by rows that use it, {products} ms"
        return f"{1e3 * self.upload_seconds:.2f} ms to copy it; on the CPU {on_cpu}"

    def on_cpu(self, rows: int) -> float:
        """Interpolated between two numbers of rows; beyond the last ones in proportion, and never below the first."""
        known = [*self.product_seconds]
        index = min(bisect.bisect_left(known, rows, lo=1), len(known) - 1)
        few, many = known[index - 1], known[index]
        first, last = self.product_seconds[few], self.product_seconds[many]
        return max(self.product_seconds[known[0]], first + (last - first) * (rows - few) / max(1, many - few))


def split(missed: Sequence[Missed], rates: SplitRates) -> set[int]:
    """The experts that the CPU computes, so that the last one of the layer ends as early as may be.

    Of those in host memory the ones with the fewest rows, as many as let both ways end earliest. Those from the disk,
    which come later and one by one, each where it ends earlier. The link gets what ends there as early, as the device
    then has the expert.
    """
    there = sorted((one for one in missed if not one.is_read), key=lambda one: (one.rows, one.index))
    cpu_free, sums = rates.rows_seconds, [0.0]
    for one in there:
        cpu_free += rates.on_cpu(one.rows)
        sums.append(cpu_free)
    ends = [max(end, (len(there) - count) * rates.upload_seconds) for count, end in enumerate(sums)]
    count = ends.index(min(ends))
    found = {one.index for one in there[:count]}
    cpu_free, link_free = sums[count] or rates.rows_seconds, (len(there) - count) * rates.upload_seconds
    comes = 0.0
    for one in missed:
        if one.is_read:
            comes += rates.read_seconds
            on_cpu = max(cpu_free, comes) + rates.on_cpu(one.rows)
            on_device = max(link_free, comes) + rates.upload_seconds
            if on_cpu < on_device:
                found.add(one.index)
                cpu_free = on_cpu
            else:
                link_free = on_device
    return found


def split_rates(room: ExpertRoom, rates: PassRates, products: ProductSeconds) -> SplitRates:
    """The rates for the experts of a model on a machine; those that are not known are assumed."""
    first, last = room.slot_bytes.values()
    upload_seconds = HANDLING_SECONDS + last / (rates.link or LINK_BYTES_PER_SECOND)
    read_seconds = first / (rates.disk or DISK_BYTES_PER_SECOND)
    return SplitRates(upload_seconds, read_seconds, products.each, ROWS_SECONDS + products.call)
