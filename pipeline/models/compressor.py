"""Entries of whole windows of tokens, made as the tokens come: what DeepSeek-V4 attends to behind its window.

Of a window that is not complete a running softmax is kept, beside the keys in the KV block of its last token: of each
channel the highest gate yet, the sum of weights and the weighed sum. So a full block holds all that is needed behind
it, and whoever shares the block goes on from there. Tokens are added one by one, so that no bit depends on where a
prompt is cut.

Shape letters in names: T tokens of this pass, C channels, P channels that are projected, W windows, R places in a
window, B blocks, E entries that a block has room for, X the means that are running.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        values_TP, gates_TP = (some[one.begin : one.end].float() for some in (values_TP, gates_TP))
        if windows == 1:  # as a pass that decodes launches: nothing that is not needed
            own, places = slice(lead, lead + end - start), range(lead, lead + end - start)
            tokens = _Tokens(values_TP.unsqueeze(0), gates_TP.add(bias_RP[own].float()).unsqueeze(0), places)
        else:
            around = (0, 0, lead, windows * kind.rate - lead - (end - start))
            values_WRP = pad(values_TP, around).unflatten(0, (windows, -1))
            gates_WRP = pad(gates_TP, around, value=-torch.inf).unflatten(0, (windows, -1))
            tokens = _Tokens(values_WRP, gates_WRP.add_(bias_RP.float()), range(kind.rate))

        blocks = range(start // self.positions, (end - 1) // self.positions + 1)
        last = [divmod(min(end, (block + 1) * self.positions) - 1 - first * kind.rate, kind.rate) for block in blocks]
        open_X3C = self._open(one, lead)
        begun = tokens.begun(open_X3C[0])
        ahead: list[torch.Tensor] = []
        if kind.overlap:  # the first channels are for the entry behind
            ahead_W3C, ahead_L3C = tokens.run(slice(0, kind.channels), tokens.begun(open_X3C[1]), last)
            begun, ahead = begun if windows == 1 else torch.cat((begun[:1], ahead_W3C[:-1])), [ahead_L3C]
        mean_W3C, mean_L3C = tokens.run(slice(kind.projected - kind.channels, None), begun, last)
        self.running[one.blocks_B[blocks.start : blocks.stop]] = torch.stack((mean_L3C, *ahead), dim=1)

        if (complete := end // kind.rate - first) > 0:
            indices_W = torch.arange(first, first + complete, device=values_TP.device)
            means_WC = mean_W3C[:complete, SUM] / mean_W3C[:complete, TOTAL]
            entries_WC = finish(means_WC, indices_W * kind.rate).to(self.entries.dtype)
            blocks_W = one.blocks_B[((indices_W + 1) * kind.rate - 1) // self.positions]
            self.entries.index_put_((blocks_W, indices_W % self.entries.shape[1]), entries_WC)

    def read(self, blocks_B: torch.Tensor, count: int, room: int) -> torch.Tensor:
        """The first entries of a sequence, so many, and zeros behind them, fp32 [room, C]."""
        step = max(1, self.kind.rate // self.positions)  # only each so many blocks have one
        first, stop = step - 1, -(-count // self.entries.shape[1]) * step
        entries_NC = self.entries.index_select(0, blocks_B[first:stop:step]).flatten(0, 1)[:count]
        return pad(entries_NC.float(), (0, 0, 0, room - count))

    def _open(self, one: SequenceRows, lead: int) -> torch.Tensor:
        """The means that are running before the first token, of which so many are in its window already, [X, 3, C]."""
        before = (one.start - 1) // self.positions
        kept = [self.running.index_select(0, one.blocks_B[before : before + 1])[0]] if one.start else []
        if lead:
            return kept[0]
        none_13C = self.running.new_zeros(1, 3, self.kind.channels)
        none_13C[:, MOST] = LOWEST
        return torch.cat((kept[0][1:], none_13C)) if kept else none_13C.expand(self.running.shape[1], -1, -1)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Those of some windows at these `places`, [W, R, P] each; where there are none, gates are -inf."""

    values_WRP: torch.Tensor
    gates_WRP: torch.Tensor
    places: range

    def begun(self, first_3C: torch.Tensor) -> torch.Tensor:
        """The means before the tokens of each window: nothing is in them but for the first one, [W, 3, C]."""
        if len(self.values_WRP) == 1:
            return first_3C.unsqueeze(0)
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
        kept_places = {place for _, place in kept}
        for index, place in enumerate(self.places):
            value_WC, gate_WC = self.values_WRP[:, index, channels], self.gates_WRP[:, index, channels]
            before_WC, most_WC = most_WC, torch.maximum(most_WC, gate_WC)
            old_WC, new_WC = (before_WC - most_WC).exp_(), (gate_WC - most_WC).exp_()
            total_WC = total_WC.mul(old_WC).add_(new_WC)
            sum_WC = sum_WC.mul(old_WC).add_(new_WC.mul_(value_WC))
            if place in kept_places or place == self.places[-1]:
                behind[place] = torch.stack((most_WC, total_WC, sum_WC), dim=1)
        means_W3C = behind[self.places[-1]]
        if len(means_W3C) == len(behind) == 1:
            return means_W3C, means_W3C
        ranks = {place: rank for rank, place in enumerate(behind)}
        rows = [ranks[place] * len(means_W3C) + window for window, place in kept]
        index_L = torch.tensor(rows, device=means_W3C.device)
        return means_W3C, torch.cat([*behind.values()]).index_select(0, index_L)
