"""Experts that the CPU computes for another device, from their slots in host memory: rows come down, outputs go up.

Letters in names: T rows of a pass, D hidden, K experts that a row uses, R rows of the pass that use one expert.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.expert_store import Split
from actors.core.message import READY, Message
from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory, Memory
from pipeline.devices.port import Device
from pipeline.generation.expert_split import MOST_ROWS, Missed, SplitRates, split
from pipeline.groups.catalog import WeightCatalog
from pipeline.models import experts
from pipeline.models.feed_forwards import Experts
from pipeline.models.model_config import ModelConfig
from pipeline.models.ops import infer
from pipeline.models.row_blocks import RowBlocks

ROWS, OUTPUTS, PLACES = "rows for experts on the CPU", "rows of experts on the CPU", "places of experts on the CPU"
LANE = "experts"
PLACE_DTYPE = torch.int64
TIMED_ROWS = (1, 2, 4, 16, MOST_ROWS)
"""Numbers of rows for which products are timed."""
TIMED_SECONDS, TIMED_PRODUCTS = 0.02, 16
"""For so long, but for three products at least; after more the CPU would find the first ones in its caches."""
Run: TypeAlias = tuple[Message[Slot], int, int]
"""An expert, and where the rows that use it begin and end in the order of experts."""


@dataclass(frozen=True, slots=True)
class _There:
    """Where an expert lies, for a catalog that looks at a slot."""

    place: str
    buffer: HostMemory


class HostExperts:
    """Multiplies on a lane of the `cpu`, expert by expert; one launch of the `device` then takes what came out.

    The rows of a layer come behind what its router has chosen. Places and outputs lie in host memory that the device
    sees, so that they wait for no copy in the H2D lane. `place` is the budget of the slots. Without `rates` all that is
    not on the device is computed here.
    """

    rates: SplitRates | None = None

    def __init__(
        self,
        config: ModelConfig,
        catalog: WeightCatalog,
        place: str,
        device: Device,
        cpu: Device,
        dtype: torch.dtype,
        most_rows: int,
    ) -> None:
        self._catalog, self._place, self._device, self._cpu, self._dtype = catalog, place, device, cpu, dtype
        self._blocks = RowBlocks(cpu.least_rows(dtype))
        self._hidden_size = config.hidden_size
        self._most_rows = min(most_rows, MOST_ROWS)
        sizes = self.sizes(config, dtype, most_rows)
        self._rows = device.host_memory(sizes[ROWS])
        self._memory = {name: device.plain_memory(sizes[name]) for name in (OUTPUTS, PLACES)}
        self._seen = {name: device.seen(memory) for name, memory in self._memory.items()}
        self._order_P = torch.empty(0, dtype=PLACE_DTYPE)
        self._filled = 0
        self._last: Event = READY

    @staticmethod
    def sizes(config: ModelConfig, dtype: torch.dtype, most_rows: int) -> Mapping[str, int]:
        """The bytes of each buffer in host memory, for passes of so many rows at most."""
        rows, row_bytes = min(most_rows, MOST_ROWS), config.hidden_size * dtype.itemsize
        uses = rows * max(kind.chosen for kind in config.expert_kinds)
        return {ROWS: rows * row_bytes, OUTPUTS: uses * row_bytes, PLACES: uses * PLACE_DTYPE.itemsize}

    def fetch(self, inputs: Memory, rows: int, after: Event) -> Event:
        """A layer begins: copy the rows that its experts get into host memory, if some may be computed here."""
        self._filled, self._last = 0, READY
        if rows > self._most_rows:
            return after
        nbytes = rows * self._hidden_size * self._dtype.itemsize
        return self._device.download(inputs, self._rows, [Copy(0, 0, nbytes)], (after,))

    def split(self, ids_TK: torch.Tensor, counts: Sequence[int]) -> Split | None:
        """What says which experts are computed here, of a layer whose rows have come, and have chosen these.

        `counts` has how many rows use each expert. None for a pass of many rows.
        """
        if len(ids_TK) > self._most_rows:
            return None
        self._order_P = torch.argsort(ids_TK.flatten(), stable=True)

        def of(kept: Sequence[int], read: Sequence[int]) -> set[int]:
            if self.rates is None:
                return {*kept, *read}
            missed = [Missed(index, counts[index]) for index in kept]
            return split([*missed, *(Missed(index, counts[index], is_read=True) for index in read)], self.rates)

        return of

    def is_here(self, message: Message[Slot]) -> bool:
        """Whether the expert was left in host memory."""
        return message.at.place == self._place

    def multiply(self, kind: Experts, run: Run) -> Event:
        """Multiply by an expert that has landed, behind those before; gives the event of the end."""
        message, begin, end = run
        places_R, first = self._order_P[begin:end], self._filled
        self._filled += len(places_R)
        self._memory[PLACES].tensor.view(PLACE_DTYPE)[first : self._filled] = places_R
        work = functools.partial(self._multiply, kind, message, places_R, first)
        self._last = self._cpu.launch(LANE, functools.partial(infer, work), (self._last,))
        return self._last

    async def ended(self) -> Event | None:
        """Wait for all products of the layer, well or not; None where there are none."""
        if not self._filled:
            return None
        await self._cpu.ended_soon(self._last)
        return self._last

    def handing_over(self, outputs_PD: torch.Tensor) -> Callable[[], object]:
        """What puts what came out into its places, as a piece of work of the device behind the products."""
        places_R = self._seen[PLACES].view(PLACE_DTYPE)[: self._filled]
        output_RD = self._as_rows(self._seen[OUTPUTS])[: self._filled]
        return functools.partial(outputs_PD.index_copy_, 0, places_R, output_RD)

    def product_seconds(self, kind: Experts, slots: Sequence[HostMemory]) -> Mapping[int, float]:
        """Seconds of a product by numbers of rows, with weights that are taken to lie in each of the slots in turn."""
        layer, part = self._catalog.order[0]
        seconds = dict[int, float]()
        there = [_There(self._place, one) for one in slots[:TIMED_PRODUCTS]]
        messages: list[Message[Any]] = [Message(layer, part, 0, one, READY) for one in there]
        for rows in TIMED_ROWS:
            if rows <= self._most_rows:
                places_R = torch.zeros(rows, dtype=PLACE_DTYPE)
                infer(functools.partial(self._time, kind, messages, places_R, seconds))
        return seconds

    def _time(
        self, kind: Experts, messages: Sequence[Message[Any]], places_R: torch.Tensor, seconds: dict[int, float]
    ) -> None:
        times, began = list[float](), time.perf_counter()
        for message in messages:
            started = time.perf_counter()
            self._multiply(kind, message, places_R, 0)
            times.append(time.perf_counter() - started)
            if len(times) > 2 and time.perf_counter() - began > TIMED_SECONDS:
                break
        seconds[len(places_R)] = max(min(times), *seconds.values(), 0.0)

    def _multiply(self, kind: Experts, message: Message[Any], places_R: torch.Tensor, first: int) -> None:
        rows_TD = self._as_rows(self._rows.tensor)
        input_RD = self._blocks.fill(rows_TD.index_select(0, places_R // kind.chosen))
        output_RD = experts.expert_product(kind, self._catalog.weights(message), input_RD)
        self._as_rows(self._memory[OUTPUTS].tensor)[first : first + len(places_R)] = output_RD[: len(places_R)]

    def _as_rows(self, memory: torch.Tensor) -> torch.Tensor:
        return memory.view(self._dtype).view(-1, self._hidden_size)

    async def aclose(self) -> None:
        """End the lane, and look at no memory of the device any more; its lines must have stopped."""
        await self._cpu.aclose()
        self._seen.clear()
