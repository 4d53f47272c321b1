"""Entries of whole windows of tokens, made as the tokens come: what DeepSeek-V4 attends to behind its window.

Of a window that is not complete a running softmax is kept, beside the keys in the KV block of its last token: of each
channel the highest gate yet, the sum of weights and the weighed sum. So a full block holds all that is needed behind
it, and whoever shares the block goes on from there. Tokens are added one by one, so that no bit depends on where a
prompt is cut.

Shape letters in names: T tokens of this pass, C channels, P channels that are projected, W windows, R places in a
window, B blocks, E entries that a block has room for, X the means that are running, A sequences of which a token comes.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch.nn.functional import pad

from pipeline.models.compressed import Compressor
from pipeline.models.pass_rows import SequenceRows

LOWEST = -1e30
"""The highest gate of no token: finite, so that differences are numbers."""
MOST, TOTAL, SUM = range(3)
Finish: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Makes entries of means, fp32 [W, C], and of the positions of their first tokens, [W]."""


@dataclass(frozen=True, slots=True)
class CompressedRows:
    """What is kept of blocks of so many `positions`: running means, fp32 [B, X, 3, C], and entries [B, E, C].

    The first mean is that of the entry whose window is open, the second one, with overlap, that of the entry behind it.
    """

    kind: Compressor
    positions: int
    running: torch.Tensor
    entries: torch.Tensor

    def add(
        self, values_TP: torch.Tensor, gates_TP: torch.Tensor, bias_RP: torch.Tensor, one: SequenceRows, finish: Finish
    ) -> None:
        """Add the tokens of a sequence, and put into its blocks what is running behind each, and complete entries."""
        kind, start, end = self.kind, one.start, one.start + one.end - one.begin
        first, lead = divmod(start, kind.rate)
        windows = (end - 1) // kind.rate + 1 - first
        around = (0, 0, lead, windows * kind.rate - lead - (end - start))
        values_WRP = pad(values_TP[one.begin : one.end].float(), around).unflatten(0, (windows, -1))
        gates_WRP = pad(gates_TP[one.begin : one.end].float(), around, value=-torch.inf).unflatten(0, (windows, -1))
        tokens = _Tokens(values_WRP, gates_WRP.add_(bias_RP.float()), _places(lead, end - start, windows, kind.rate))

        blocks = range(start // self.positions, (end - 1) // self.positions + 1)
        last = [divmod(min(end, (block + 1) * self.positions) - 1 - first * kind.rate, kind.rate) for block in blocks]
        open_X3C = self._open(one, lead)
        begun = tokens.begun(open_X3C[0])
        ahead: list[torch.Tensor] = []
        if kind.overlap:  # the first channels are for the entry behind
            ahead_W3C, ahead_L3C = tokens.run(slice(0, kind.channels), tokens.begun(open_X3C[1]), last)
            begun, ahead = torch.cat((begun[:1], ahead_W3C[:-1])), [ahead_L3C]
        mean_W3C, mean_L3C = tokens.run(slice(kind.projected - kind.channels, None), begun, last)
        self.running[one.blocks_B[blocks.start : blocks.stop]] = torch.stack((mean_L3C, *ahead), dim=1)

        if (complete := end // kind.rate - first) > 0:
            indices_W = torch.arange(first, first + complete, device=values_TP.device)
            means_WC = mean_W3C[:complete, SUM] / mean_W3C[:complete, TOTAL]
            entries_WC = finish(means_WC, indices_W * kind.rate).to(self.entries.dtype)
            blocks_W = one.blocks_B[((indices_W + 1) * kind.rate - 1) // self.positions]
            self.entries.index_put_((blocks_W, indices_W % self.entries.shape[1]), entries_WC)

    def add_answers(
        self,
        values_TP: torch.Tensor,
        gates_TP: torch.Tensor,
        bias_RP: torch.Tensor,
        answers: Sequence[SequenceRows],
        finish: Finish,
    ) -> None:
        """Do the same, with the same bits, for sequences of which a single token comes, none of them its first."""
        rate, means = self.kind.rate, self.running.shape[1]
        rows, leads = [one.begin for one in answers], [one.start % rate for one in answers]
        values_AXC = _by_mean(_picked(values_TP, rows).float(), means)
        gates_AXC = _by_mean(_picked(gates_TP, rows).float().add(_picked(bias_RP, leads).float()), means)
        open_AX3C = self._open_before(answers, leads)
        before_AXC, total_AXC, sum_AXC = open_AX3C.unbind(2)
        most_AXC = torch.maximum(before_AXC, gates_AXC)
        old_AXC, new_AXC = (before_AXC - most_AXC).exp_(), (gates_AXC - most_AXC).exp_()
        total_AXC = total_AXC.mul(old_AXC).add_(new_AXC)
        sum_AXC = sum_AXC.mul(old_AXC).add_(new_AXC.mul_(values_AXC))
        blocks_A = torch.stack([one.blocks_B[one.start // self.positions] for one in answers])
        self.running[blocks_A] = torch.stack((most_AXC, total_AXC, sum_AXC), dim=2)

        if complete := [index for index, lead in enumerate(leads) if lead == rate - 1]:
            total_WC, sum_WC = (_picked(some[:, 0], complete) for some in (total_AXC, sum_AXC))
            indices_W = _on_device([answers[index].start // rate for index in complete], values_TP.device)
            entries_WC = finish(sum_WC / total_WC, indices_W * rate).to(self.entries.dtype)
            blocks_W = _picked(blocks_A, complete)
            self.entries.index_put_((blocks_W, indices_W % self.entries.shape[1]), entries_WC)

    def read(self, blocks_B: torch.Tensor, count: int, room: int) -> torch.Tensor:
        """The first entries of a sequence, so many, and zeros behind them, fp32 [room, C]."""
        step = max(1, self.kind.rate // self.positions)  # only each so many blocks have one
        first, stop = step - 1, -(-count // self.entries.shape[1]) * step
        entries_NC = self.entries.index_select(0, blocks_B[first:stop:step]).flatten(0, 1)[:count]
        return pad(entries_NC.float(), (0, 0, 0, room - count))

    def _open(self, one: SequenceRows, lead: int) -> torch.Tensor:
        """The means that are running before the first token, of which so many are in its window already, [X, 3, C]."""
        none_13C = self._none(1)
        means = self.running.shape[1]
        if not one.start:
            return none_13C.expand(means, -1, -1)
        before = (one.start - 1) // self.positions
        kept_X3C = self.running.index_select(0, one.blocks_B[before : before + 1])[0]
        return kept_X3C if lead else torch.cat((kept_X3C[1:], none_13C))

    def _open_before(self, answers: Sequence[SequenceRows], leads: Sequence[int]) -> torch.Tensor:
        """The means that are running before a token of each sequence, [A, X, 3, C]."""
        before_A = torch.stack([one.blocks_B[(one.start - 1) // self.positions] for one in answers])
        open_AX3C = self.running.index_select(0, before_A)
        if anew := [index for index, lead in enumerate(leads) if not lead]:
            kept_AX3C = torch.cat((_picked(open_AX3C, anew)[:, 1:], self._none(len(anew)).unsqueeze(1)), dim=1)
            if len(anew) == len(answers):
                return kept_AX3C
            open_AX3C[_on_device(anew, open_AX3C.device)] = kept_AX3C
        return open_AX3C

    def _none(self, count: int) -> torch.Tensor:
        """Means of nothing, [count, 3, C]."""
        none_N3C = self.running.new_zeros(count, 3, self.kind.channels)
        none_N3C[:, MOST] = LOWEST
        return none_N3C


def _by_mean(some_AP: torch.Tensor, means: int) -> torch.Tensor:
    """Projected channels by the mean that they go into, [A, X, C]: the first ones go into the entry behind."""
    some_AXC: torch.Tensor = some_AP.unflatten(1, (means, -1))
    return some_AXC.flip(1) if means > 1 else some_AXC


def _picked(some: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """These rows; without a copy where they follow one another."""
    if all(after == before + 1 for before, after in pairwise(rows)):
        return some[rows[0] : rows[-1] + 1]
    return some.index_select(0, _on_device(rows, some.device))


def _on_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """The numbers as a tensor there, for which the host does not wait."""
    return torch.tensor(numbers).to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Those of some windows, [W, R, P] each; only at these `places` there are any: elsewhere gates are -inf."""

    values_WRP: torch.Tensor
    gates_WRP: torch.Tensor
    places: Collection[int]

    def begun(self, first_3C: torch.Tensor) -> torch.Tensor:
        """The means before the tokens of each window: nothing is in them but for the first one, [W, 3, C]."""
        begun_W3C = first_3C.new_zeros(len(self.values_WRP), *first_3C.shape)
        begun_W3C[:, MOST] = LOWEST
        begun_W3C[0] = first_3C
        return begun_W3C

    def run(
        self, channels: slice, begun_W3C: torch.Tensor, kept: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the tokens of all windows, place by place. Returns the means behind the last, [W, 3, C], and those behind
        each of the windows and places that are `kept`, [L, 3, C].
        """
        most_WC, total_WC, sum_WC = begun_W3C.unbind(1)
        behind: dict[int, torch.Tensor] = {}
        kept_places, means_W3C = {place for _, place in kept}, begun_W3C
        for place in self.places:
            value_WC, gate_WC = self.values_WRP[:, place, channels], self.gates_WRP[:, place, channels]
            before_WC, most_WC = most_WC, torch.maximum(most_WC, gate_WC)
            old_WC, new_WC = (before_WC - most_WC).exp_(), (gate_WC - most_WC).exp_()
            total_WC = total_WC.mul(old_WC).add_(new_WC)
            sum_WC = sum_WC.mul(old_WC).add_(new_WC.mul_(value_WC))
            if place in kept_places:
                behind[place] = torch.stack((most_WC, total_WC, sum_WC), dim=1)
        means_W3C = torch.stack((most_WC, total_WC, sum_WC), dim=1)
        ranks = {place: rank for rank, place in enumerate(behind)}
        rows = [ranks[place] * len(means_W3C) + window for window, place in kept]
        return means_W3C, _picked(torch.cat([*behind.values()]), rows)


def _places(lead: int, tokens: int, windows: int, rate: int) -> range:
    """Where tokens are in any of the windows."""
    return range(lead, lead + tokens) if windows == 1 else range(rate)
