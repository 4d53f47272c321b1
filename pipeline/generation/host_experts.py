"""Experts that the CPU computes for another device, from their slots in host memory: rows come down, outputs go up.

Letters in names: T rows of a pass, D hidden, K experts that a row uses, R rows of the pass that use one expert.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.expert_store import Split
from actors.core.message import READY, Message
from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory, Memory
from pipeline.devices.port import Device
from pipeline.generation.expert_split import MOST_ROWS, Missed, ProductSeconds, SplitRates, split
from pipeline.generation.host_products import HostProducts
from pipeline.generation.pass_gate import PassGate
from pipeline.groups.catalog import WeightCatalog
from pipeline.models.feed_forwards import Experts
from pipeline.models.model_config import ModelConfig
from pipeline.models.ops import infer

ROWS, OUTPUTS, PLACES = "rows for experts on the CPU", "rows of experts on the CPU", "places of experts on the CPU"
LANE = "experts"
TRIED, IN_A_ROW = 4, 1
"""Passes that are timed with what the CPU computes, and as many without, before one way is chosen."""
PLACE_DTYPE = torch.int64
Run: TypeAlias = tuple[Message[Slot], int, int]
"""An expert, and where the rows that use it begin and end in the order of experts."""


class HostExperts:
    """Multiplies on a lane of the `cpu`, all experts that are there at once; one launch of the `device` then takes what
    came out.

    The rows of a layer come behind what its router has chosen. Places and outputs lie in host memory that the device
    sees, so that they wait for no copy in the H2D lane. `place` is the budget of the slots. Without `rates` all that is
    not on the device is computed here; with them only what is faster here, in passes for which a gate `opens`.
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
        self._place, self._device, self._cpu, self._dtype = place, device, cpu, dtype
        self._hidden_size = config.hidden_size
        self._most_rows = min(most_rows, MOST_ROWS)
        sizes = self.sizes(config, dtype, most_rows)
        self._rows = device.host_memory(sizes[ROWS])
        self._memory = {name: device.plain_memory(sizes[name]) for name in (OUTPUTS, PLACES)}
        self._seen = {name: device.seen(memory) for name, memory in self._memory.items()}
        self._products = HostProducts(catalog, dtype, cpu.least_rows(dtype))
        self._layers = len({layer for layer, _ in catalog.order})
        self._order_P = torch.empty(0, dtype=PLACE_DTYPE)
        self._filled = 0
        self._last: Event = READY
        self._gate = PassGate(TRIED, IN_A_ROW)
        self._begun_at, self._asked = 0.0, 0
        self.opens = True

    @staticmethod
    def sizes(config: ModelConfig, dtype: torch.dtype, most_rows: int) -> Mapping[str, int]:
        """The bytes of each buffer in host memory, for passes of so many rows at most."""
        rows, row_bytes = min(most_rows, MOST_ROWS), config.hidden_size * dtype.itemsize
        uses = rows * max(kind.chosen for kind in config.expert_kinds)
        return {ROWS: rows * row_bytes, OUTPUTS: uses * row_bytes, PLACES: uses * PLACE_DTYPE.itemsize}

    def product_seconds(self, kind: Experts, slots: Sequence[HostMemory]) -> ProductSeconds:
        """What products take, with weights that are taken to lie in each of the slots in turn."""
        rows_TD, output_PD = self._as_rows(self._rows.tensor), self._as_rows(self._memory[OUTPUTS].tensor)
        with torch.inference_mode():
            return self._products.seconds(kind, self._place, slots, rows_TD, output_PD)

    def begin(self, rows: int) -> None:
        """A pass of so many rows begins; `opens` says whether it may leave experts to the CPU."""
        self._begun_at, self._asked, self._filled = time.perf_counter(), 0, 0
        self.opens = rows <= self._most_rows and (self.rates is None or self._gate.opens(rows))

    def end(self) -> None:
        """The results of the pass are there."""
        if self._asked == self._layers:  # a pass that was abandoned amid its layers tells nothing
            self._gate.took(time.perf_counter() - self._begun_at)

    def fetch(self, inputs: Memory, rows: int, after: Event) -> Event:
        """A layer begins: copy the rows that its experts get into host memory, if some may be computed here."""
        self._filled, self._last = 0, READY
        if not self.opens:
            return after
        nbytes = rows * self._hidden_size * self._dtype.itemsize
        return self._device.download(inputs, self._rows, [Copy(0, 0, nbytes)], (after,))

    def split(self, ids_TK: torch.Tensor, counts: Sequence[int]) -> Split | None:
        """Return the function that says which experts of a layer are computed here; None if the pass leaves none here.

        `ids_TK` are the experts that the rows have chosen, and `counts` how many rows use each.
        """
        self._asked += 1
        if not self.opens:
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

    def multiply(self, kind: Experts, runs: Sequence[Run]) -> Event:
        """Multiply by experts that have landed, behind those before; gives the event of the end of all."""
        first, counts = self._filled, [end - begin for _, begin, end in runs]
        self._filled += sum(counts)
        places_P = self._memory[PLACES].tensor.view(PLACE_DTYPE)[first : self._filled]
        torch.cat([self._order_P[begin:end] for _, begin, end in runs], out=places_P)
        messages, row_P = [message for message, _, _ in runs], places_P // kind.chosen
        work = functools.partial(self._multiply, kind, messages, row_P, counts, first)
        self._last = self._cpu.launch(LANE, functools.partial(infer, work), (self._last,))
        return self._last

    def _multiply(
        self, kind: Experts, messages: Sequence[Message[Slot]], row_P: torch.Tensor, counts: Sequence[int], first: int
    ) -> None:
        rows_TD = self._as_rows(self._rows.tensor)[: int(row_P.max()) + 1]
        output_PD = self._as_rows(self._memory[OUTPUTS].tensor)[first : first + len(row_P)]
        self._products.multiply(kind, messages, row_P, counts, rows_TD, output_PD)

    async def ended(self) -> Event | None:
        """Wait for all products of the layer, well or not; None where there are none."""
        if not self._filled:
            return None
        await self._cpu.ended_soon(self._last)
        return self._last

    def handing_over(self, outputs_PD: torch.Tensor) -> Callable[[], object]:
        """The work with which the device copies the products into their places among the outputs."""
        places_P = self._seen[PLACES].view(PLACE_DTYPE)[: self._filled]
        output_PD = self._as_rows(self._seen[OUTPUTS])[: self._filled]
        return functools.partial(outputs_PD.index_copy_, 0, places_P, output_PD)

    def _as_rows(self, memory: torch.Tensor) -> torch.Tensor:
        return memory.view(self._dtype).view(-1, self._hidden_size)

    async def aclose(self) -> None:
        """End the threads, and look at no memory of the device any more; its lines must have stopped."""
        await self._cpu.aclose()
        self._products.close()
        self._seen.clear()
