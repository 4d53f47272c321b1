"""What a layer with experts computes in a pass, and the buffers between choosing experts and adding up.

Letters in names: T rows of a pass, D hidden, K experts that a row uses, R rows of the pass that use one expert.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from actors.core.budget import Slot
from actors.core.message import GroupKey, Message
from actors.core.ports import Copy
from pipeline.devices.memory import HostMemory, Memory, copy_bytes
from pipeline.devices.port import Device
from pipeline.generation.micro_batches import MicroBatch
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.token_experts import ID_DTYPE, TokenExperts
from pipeline.groups.catalog import WeightCatalog
from pipeline.models import cpu_grouped_experts, experts
from pipeline.models.feed_forwards import Experts
from pipeline.models.model_config import ModelConfig
from pipeline.models.row_blocks import RowBlocks

INPUTS, BESIDE, BETWEEN, OUTPUTS = "rows for experts", "rows beside experts", "rows in experts", "rows of experts"
IDS, SHARES, MIXING, ORDER = "chosen experts", "shares of experts", "how streams are mixed", "order of experts"
LAUNCH_BYTES = 32 << 20
"""A CPU multiplies by so much at a time, in a few milliseconds: the slots of a launch are free when it has ended."""
NextRouter: TypeAlias = tuple[Message[Slot], int]
"""The group of a later layer whose router is asked, and the row of the ids from which on its choice is written."""


class ExpertWork:
    """Rows of the pass that use an expert are computed together, in the order of the pass, whichever expert is first.

    What an expert gives for a row has a place of its own until all are added up. So no bit depends on which experts
    were there already, nor on the order in which the others came.
    """

    def __init__(
        self,
        config: ModelConfig,
        catalog: WeightCatalog,
        expert_catalog: WeightCatalog,
        device: Device,
        dtype: torch.dtype,
        row_blocks: RowBlocks,
        buffers: PassBuffers,
        most_rows: int,
        of_tokens: TokenExperts | None = None,
    ) -> None:
        self.of_tokens = of_tokens
        self._config = config
        self._catalog = catalog
        self._expert_catalog = expert_catalog
        self._dtype = dtype
        self._row_blocks = row_blocks
        self._buffers = buffers
        sizes = self.sizes(config, dtype, row_blocks, most_rows, device.torch_device)
        self._memory: dict[str, Memory] = {name: device.device_memory(nbytes) for name, nbytes in sizes.items()}
        self._layers = sorted({layer for layer, _ in expert_catalog.order})
        ids = self._memory[IDS]
        self._kernels = experts.grouped_kernels(device.torch_device, dtype) if sizes else None
        takes_bf16 = device.torch_device.type == "cpu" and dtype == torch.bfloat16 and not row_blocks.fixed
        self._on_cpu = cpu_grouped_experts if takes_bf16 else None
        self._numbers: dict[Hashable, int] = {}
        self._laid_out: dict[GroupKey, int] = {}
        self._places: dict[int, Any] = {}
        self._compiled: set[tuple[object, object]] = set()
        self.ids_on_host = ids if isinstance(ids, HostMemory) else device.host_memory(sizes[IDS])
        if self._kernels is not None:
            table = device.plain_memory(self._kernels.FEW_TILES * self._kernels.LINE_BYTES)
            self._tiles = table.tensor.view(torch.int64).view(self._kernels.FEW_TILES, -1).numpy()
            self._seen_tiles = device.seen(table).view(torch.int64).view(self._kernels.FEW_TILES, -1)

    @staticmethod
    def sizes(
        config: ModelConfig, dtype: torch.dtype, row_blocks: RowBlocks, most_rows: int, device: torch.device
    ) -> Mapping[str, int]:
        """The bytes of each buffer, for passes of so many rows; empty for a model without experts."""
        kinds = config.expert_kinds
        if not kinds:
            return {}
        rows = row_blocks.padded(most_rows)
        most = rows * max(kind.chosen for kind in kinds)
        row_bytes = config.hidden_size * dtype.itemsize
        return {
            INPUTS: rows * row_bytes,
            BESIDE: rows * row_bytes if any(kind.shared for kind in kinds) else 0,
            BETWEEN: most * max(kind.expert.size for kind in kinds) * dtype.itemsize if device.type == "cuda" else 0,
            OUTPUTS: most * row_bytes,
            IDS: 2 * most * ID_DTYPE.itemsize,
            SHARES: most * torch.float32.itemsize,
            MIXING: rows * config.outside.streams.mixed * torch.float32.itemsize if config.outside.streams else 0,
            ORDER: (most + row_blocks.most_added()) * torch.int64.itemsize,
        }

    @property
    def at_once(self) -> int | None:
        """How many experts a launch computes at most, where it does so one by one; None where it does all as one."""
        if self._kernels is not None or not self._layers:
            return None
        return max(1, LAUNCH_BYTES * len(self._expert_catalog.order) // self._expert_catalog.needed_bytes)

    @property
    def inputs_memory(self) -> Memory:
        """Where the rows lie that experts get, [T, D]."""
        return self._memory[INPUTS]

    @property
    def outputs(self) -> torch.Tensor:
        """What experts gave, by row and rank, [T * K, D]."""
        return self._rows(OUTPUTS)

    def kind(self, layer: int) -> Experts | None:
        """The experts of a layer; None where it has none."""
        found = self._config.layer_kinds[layer].feed_forward
        return found if isinstance(found, Experts) else None

    def next_kind(self, layer: int) -> tuple[int, Experts] | None:
        """The next layer here that has experts, and these; None behind the last."""
        kinds = ((later, self.kind(later)) for later in self._layers if later > layer)
        return next(((later, kind) for later, kind in kinds if kind is not None), None)

    def union(self, layer: int, rows: int) -> list[int]:
        """The experts that so many rows use in a layer in which that follows from their tokens."""
        return [] if self.of_tokens is None else self.of_tokens.of_tokens(layer, rows).unique().tolist()

    def ids(self, kind: Experts, rows: int, first: int = 0) -> torch.Tensor:
        """The experts that rows of the pass have chosen, int32 [T, K] in host memory, from the first on or a later.

        Behind the padded rows are those that were guessed.
        """
        begin, end = first * kind.chosen, (first + rows) * kind.chosen
        return self.ids_on_host.tensor.view(ID_DTYPE)[begin:end].view(rows, kind.chosen)

    def choose(self, message: Message[Slot], kind: Experts, part: MicroBatch, guesses: NextRouter | None) -> None:
        """Norm, router and what is beside experts, of the rows of a micro-batch.

        For `guesses` the router of another group chooses for the present state, too.
        """
        weights, layer = self._catalog.weights(message), self._config.layer_kinds[message.layer]
        for block in part.blocks:
            hidden_TD, rows = self._buffers.hidden(block.begin, block.end), slice(block.begin, block.end)
            known_TK = None
            if self.of_tokens is not None and kind.routing.by_token:
                known_TK = self.of_tokens.of_rows(message.layer, block.begin, block.end)
            routed = experts.choose(layer, kind, weights, hidden_TD, self._row_blocks.fixed, known_TK)
            self._rows(INPUTS)[rows] = routed.input_TD
            self._ranks(IDS, ID_DTYPE, kind)[rows] = routed.ids_TK
            self._ranks(SHARES, torch.float32, kind)[rows] = routed.weights_TK
            if routed.beside_TD is not None:
                self._rows(BESIDE)[rows] = routed.beside_TD
            if routed.mixing is not None:
                self._mixing(routed.mixing.shape[1])[rows] = routed.mixing
        if guesses is not None:
            self._guess(*guesses, kind, part)

    def _guess(self, message: Message[Slot], first: int, kind: Experts, part: MicroBatch) -> None:
        weights, layer = self._catalog.weights(message), self._config.layer_kinds[message.layer]
        for block in part.blocks:
            hidden_TD = self._buffers.hidden(block.begin, block.end)
            ids_TK = experts.guess(layer, kind, weights, hidden_TD)
            self._ranks(IDS, ID_DTYPE, kind)[first + block.begin : first + block.end] = ids_TK

    def choose_and_sort(
        self,
        message: Message[Slot],
        kind: Experts,
        guesses: NextRouter | None,
        rows: int,
        part: MicroBatch,
    ) -> None:
        """The same of the last micro-batch; then bring the places of all rows into the order of their experts.

        And the ids to the host, those of guesses, too.
        """
        self.choose(message, kind, part, guesses)
        ids = self._ranks(IDS, ID_DTYPE, kind)[:rows].flatten()
        torch.argsort(ids, stable=True, out=self._order()[: len(ids)])
        if (memory := self._memory[IDS]) is not self.ids_on_host:
            row_bytes = kind.chosen * ID_DTYPE.itemsize
            begins = [0] if guesses is None else [0, guesses[1] * row_bytes]
            copy_bytes(memory, self.ids_on_host, [Copy(begin, begin, rows * row_bytes) for begin in begins])

    def compute(self, kind: Experts, runs: Sequence[tuple[Message[Slot], int, int]]) -> None:
        """Multiply by some experts: each with where the rows that use it begin and end in the order."""
        if (kernels := self._kernels or self._on_cpu) is not None:
            runs = self._multiply_together(kernels, kind, runs)
        if not runs:
            return
        inputs_TD, outputs, order = self._rows(INPUTS), self._rows(OUTPUTS), self._order()
        each = [(self._expert_catalog.weights(message), first, last) for message, first, last in runs]
        order = order[: max(last for _, _, last in each) + self._row_blocks.most_added()]
        rows = (order // kind.chosen).clamp_(0, len(inputs_TD) - 1)  # any rows fill up
        for weights, first, last in each:
            for begin, end in self._row_blocks.cuts(first, first + self._row_blocks.padded(last - first)):
                input_RD = inputs_TD.index_select(0, rows[begin:end])
                output_RD = experts.expert_product(kind, weights, input_RD, self._row_blocks.fixed)
                places_R = order[begin : min(end, last)]
                outputs.index_copy_(0, places_R, output_RD[: len(places_R)])

    def _multiply_together(
        self, kernels: Any, kind: Experts, runs: Sequence[tuple[Message[Slot], int, int]]
    ) -> Sequence[tuple[Message[Slot], int, int]]:
        """Multiply by those with few rows; returns the others. With fixed blocks no expert may have many."""
        alone, together = [], defaultdict(list)
        for message, first, last in runs:
            places = None
            if self._row_blocks.fixed or last - first <= kernels.MANY_ROWS:
                slot = message.at.buffer.tensor.data_ptr()
                alike = self._alike(message.key)
                if alike not in self._places:
                    weights = self._expert_catalog.weights(message)
                    self._places[alike] = kernels.places(kind.expert, weights, slot)
                places = self._places[alike]
            if places is None:
                alone.append((message, first, last))
            else:
                addresses = [slot + offset for offset in places.offsets]
                together[places.wide, places.down].append((places, (addresses, first, last)))
        between = self._memory[BETWEEN].tensor.view(self._dtype)
        rows = self._rows(INPUTS), self._order(), kind.chosen, between, self._rows(OUTPUTS)
        for stored, each in together.items():
            kernels.multiply(kind.expert, each[0][0], [run for _, run in each], *rows)
            self._compiled.add(stored)
        return alone

    def list_few(self, runs: Sequence[tuple[Message[Slot], int, int]]) -> Any:
        """Write a table of a few experts for `compute_few`: how they are stored; None where it cannot have them.

        A launch that is recorded finds the table at the same place each time. None by the one before is to come:
        the host has waited for a router's choice behind that.
        """
        if (kernels := self._kernels) is None or not self.is_short(runs):
            return None
        each = [self._places[self._alike(message.key)] for message, _, _ in runs]
        slots = [message.at.buffer.tensor.data_ptr() for message, _, _ in runs]
        tiles = kernels.tiles(
            [
                ([slot + offset for offset in places.offsets], first, last)
                for places, slot, (_, first, last) in zip(each, slots, runs, strict=True)
            ]
        )
        if len(tiles) > len(self._tiles) or len({(places.wide, places.down) for places in each}) > 1:
            return None
        self._tiles[:, 1] = 0
        self._tiles[: len(tiles)] = tiles
        return each[0].wide, each[0].down

    def compute_few(self, message: Message[Slot], kind: Experts, stored: Any, rows: int, part: MicroBatch) -> None:
        """Multiply by the experts of the table, the last ones of a layer, and add up."""
        between = self._memory[BETWEEN].tensor.view(self._dtype)
        given = self._rows(INPUTS), self._order(), kind.chosen, between, self._rows(OUTPUTS)
        if self._kernels is not None:
            self._kernels.multiply_tiles(kind.expert, *stored, self._seen_tiles, *given)
        self.add_up(message, kind, rows, part)

    def is_short(self, runs: Sequence[tuple[Message[Slot], int, int]]) -> bool:
        """Whether these are few launches, of kernels that have been compiled."""
        if self._kernels is None or max(last - first for _, first, last in runs) > self._kernels.MANY_ROWS:
            return False
        each = [self._places.get(self._alike(message.key)) for message, _, _ in runs]
        return all(one is not None and (one.wide, one.down) in self._compiled for one in each)

    def _alike(self, key: GroupKey) -> int:
        """A number for all experts that lie alike in their slots: where the kernels find one they find the others."""
        if key not in self._laid_out:
            self._laid_out[key] = self._numbers.setdefault(self._expert_catalog.laid_out(key), len(self._numbers))
        return self._laid_out[key]

    def add_up(self, message: Message[Slot], kind: Experts, rows: int, part: MicroBatch) -> None:
        """Add what experts gave to the hidden states of a micro-batch; rows behind the last token stay as they are."""
        weights, layer = self._catalog.weights(message), self._config.layer_kinds[message.layer]
        outputs_TKD = self._rows(OUTPUTS)[: rows * kind.chosen].view(rows, kind.chosen, -1)
        for block in part.blocks:
            if (end := min(block.end, rows)) > block.begin:
                some = slice(block.begin, end)
                shares_TK = self._ranks(SHARES, torch.float32, kind)[some]
                beside_TD = self._rows(BESIDE)[some] if kind.shared is not None else None
                hidden_TD = self._buffers.hidden(block.begin, end)
                mixing = None if layer.streams is None else self._mixing(layer.streams.mixed)[some]
                experts.add_up(layer, weights, hidden_TD, outputs_TKD[some], shares_TK, beside_TD, mixing)

    def _order(self) -> torch.Tensor:
        return self._memory[ORDER].tensor.view(torch.int64)

    def _rows(self, name: str) -> torch.Tensor:
        return self._memory[name].tensor.view(self._dtype).view(-1, self._config.hidden_size)

    def _mixing(self, columns: int) -> torch.Tensor:
        return self._memory[MIXING].tensor.view(torch.float32).view(-1, columns)

    def _ranks(self, name: str, dtype: torch.dtype, kind: Experts) -> torch.Tensor:
        items = self._memory[name].tensor.view(dtype)
        return items[: len(items) // kind.chosen * kind.chosen].view(-1, kind.chosen)
