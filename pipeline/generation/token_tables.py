"""What penalties and rules say of every token, a row for each sequence that has any: in host memory, and by the logits.

Shape letters: V vocabulary, T tokens, N changed entries.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.devices.memory import Memory
from pipeline.devices.port import Device
from pipeline.generation.drawing import FORCED, ONCE, RULED_OUT, SEEN
from pipeline.generation.grammar import GrammarState
from pipeline.generation.sampling import Sampler, ids_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CHANGES = 16
"""Entries of a table that are sent one by one; where more have changed, the whole row is sent."""
NO_IDS = torch.empty(0, dtype=torch.int64)


@dataclass(slots=True)
class Row:
    """The row of one sequence.

    Attributes:
        index: which row of the tables it is.
        tokens: how many tokens of the answer are counted in the host's row; -1 where that is to be made anew.
        ruled_out: the ids that rules have ruled out in it.
        allowed: a bit for each token that a grammar allows in it.
        changed: the entries that the device may not have yet; None for all.
    """

    index: int
    tokens: int = -1
    ruled_out: torch.Tensor = NO_IDS
    allowed: "NDArray[np.uint8]" = field(default_factory=lambda: np.empty(0, np.uint8))
    changed: Sequence[int] | None = None


class TokenTables:
    """As many rows as a pass has requests, in both places; `drawing` says what their entries mean.

    The host's rows follow from what the sequences know, and the device is sent all that has changed since a pass last
    chose by them, so a pass that fails spoils no row. On a CPU both places are the same memory.
    """

    def __init__(self, device: Device, max_requests: int, vocabulary_size: int) -> None:
        nbytes = self.nbytes(max_requests, vocabulary_size)
        self.host, self.device = in_both_places(device, nbytes)
        self._host_SV = self.host.tensor.view(torch.int32).view(-1, vocabulary_size).numpy()
        self._size = vocabulary_size
        self._rows: dict[Sampler, Row] = {}
        self._unused = list(range(max_requests))

    @staticmethod
    def nbytes(max_requests: int, vocabulary_size: int) -> int:
        """The memory that it takes, in each place."""
        return max_requests * vocabulary_size * torch.int32.itemsize

    def has(self, sampler: Sampler) -> bool:
        """Whether its row is there, and is brought up to date in little time."""
        return sampler in self._rows and sampler.grammar is None

    def view(self, memory: Memory) -> torch.Tensor:
        """The rows in one of the places, [max_requests, V]."""
        return memory.tensor.view(torch.int32).view(-1, self._size)

    def assign(self, samplers: Collection[Sampler]) -> None:
        """Give these samplers rows. Ended sequences leave theirs; if that is not enough, those not in the pass do."""
        missing = [one for one in samplers if one not in self._rows]
        leaving = [one for one in self._rows if one.ended]
        if missing:
            leaving += [one for one in self._rows if not one.ended and one not in samplers]
        for sampler in leaving:
            if sampler.ended or len(self._unused) < len(missing):
                self._unused.append(self._rows.pop(sampler).index)
        for sampler in missing:
            self._rows[sampler] = Row(self._unused.pop())

    def update(self, sampler: Sampler) -> tuple[int, Sequence[int] | None]:
        """Bring the host's row up to date. Returns its number, and which entries the device must get: None for all."""
        row = self._rows[sampler]
        rules = sampler.rules
        tokens, row.tokens = row.tokens, -1  # should this fail, the row is made anew
        if rules is None and row.changed == () and tokens == len(sampler.token_ids) - 1:
            # Nearly always; the tensor operations below take twenty times as long, for each row of a pass.
            token_id = sampler.token_ids[-1]
            self._host_SV[row.index, token_id] = (int(self._host_SV[row.index, token_id]) + ONCE) | SEEN
            row.tokens, row.changed = tokens + 1, (token_id,)
            return row.index, row.changed
        table_V = self.view(self.host)[row.index]
        if rules is not None and (forced := rules.forced()):
            table_V.fill_(RULED_OUT)
            table_V[forced] = FORCED
            row.changed = None
            return row.index, None
        if tokens < 0:
            row.ruled_out, row.allowed = NO_IDS, np.full(-(-self._size // 8), 0xFF, np.uint8)
            table_V.zero_()
            table_V[ids_tensor(sampler.prompt_ids)] = SEEN
        if sampler.grammar is not None:
            self._keep_to(sampler.grammar, row)
        came_T = ids_tensor(sampler.token_ids[max(tokens, 0) :])
        ruled_out = NO_IDS if rules is None else rules.ruled_out()
        touched_N = torch.cat([row.ruled_out, came_T, ruled_out])
        before_N = table_V[touched_N]
        table_V[row.ruled_out] &= ~RULED_OUT
        table_V.index_add_(0, came_T, torch.full_like(came_T, ONCE, dtype=torch.int32))
        table_V[came_T] |= SEEN
        table_V[ruled_out] |= RULED_OUT
        row.ruled_out, row.tokens = ruled_out, len(sampler.token_ids)
        if tokens < 0:
            row.changed = None
        elif row.changed is not None:
            touched = touched_N[table_V[touched_N] != before_N].tolist()
            row.changed = sorted({*row.changed, *touched})
        return row.index, row.changed

    def _keep_to(self, grammar: GrammarState, row: Row) -> None:
        """Rule out what the grammar does not allow, and nothing else: the entries whose bits are others than before."""
        table_V, allowed = self._host_SV[row.index], grammar.allowed()
        others_V = np.unpackbits(allowed ^ row.allowed, bitorder="little")[: self._size]
        if len(row.ruled_out):
            others_V ^= (table_V & RULED_OUT == 0) ^ np.unpackbits(row.allowed, bitorder="little")[: self._size]
        if np.count_nonzero(others_V) > MOST_CHANGES:  # finding out which would take ten times as long
            table_V ^= (others_V * RULED_OUT).astype(np.int32)
            row.changed = None
        else:
            changed_N = np.flatnonzero(others_V)
            table_V[changed_N] ^= RULED_OUT
            row.changed = None if row.changed is None else sorted({*row.changed, *changed_N.tolist()})
        row.ruled_out, row.allowed = NO_IDS, allowed

    def sent(self, sampler: Sampler) -> None:
        """Take note that the device has the same row as the host, as a pass has chosen by it."""
        self._rows[sampler].changed = ()


def in_both_places(device: Device, nbytes: int) -> tuple[Memory, Memory]:
    """Memory of the host, and of the device; the same where computing reads host memory."""
    host = device.host_memory(nbytes)
    return host, device.device_memory(nbytes) if len(device.places) > 1 else host
