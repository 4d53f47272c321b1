"""Log-probabilities of prompts: of each token but the first, and of those that are most likely in its place.

No row ever has all of its logits: of each slice of the head it keeps what counts. Nothing that is told, in fp32, shows
how many rows were computed together: exponentials are added up in fp64 or, on a GPU, first in an order of our own.
Shape letters: R rows, V logits of a slice, K most likely tokens.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from actors.core.event import Event
from actors.core.ports import Copy
from pipeline.devices.port import Device
from pipeline.errors import RequestError
from pipeline.generation.batching import Piece
from pipeline.generation.parameters import MOST_PROMPT_LOGPROBS
from pipeline.generation.sequence import RunningSequence
from pipeline.generation.token_tables import in_both_places
from pipeline.models.activations import SUMMED_LOGITS
from pipeline.models.row_blocks import RowBlocks
from pipeline.system.memory_plan import Holding

SUM, OWN, VALUES = 0, 1, 2
IDS = VALUES + MOST_PROMPT_LOGPROBS
COLUMNS = IDS + MOST_PROMPT_LOGPROBS
"""Of a row: the logarithm of what its exponentials add up to, the logit of the prompt's token, the greatest logits, and
whose they are; fp64."""
INPUTS = 2
"""Which row of the pass it is, and which token the prompt has behind it; int64."""
ITEM_BYTES = 8
SET_LOGITS, FEW_SETS = 32, 8
EXACT_SUMMED = 1 << 10
"""So many numbers of a row are copied to fp64 at a time on a GPU: half of `LIKELY_BYTES`."""
Found: TypeAlias = list[dict[int, float]] | RequestError
READ_AT_ONCE = 256
"""Rows that are read of the results before other tasks have their turn."""


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """Rows of one sequence. The first is scored for the token at position `first` of the prompt."""

    sequence: RunningSequence
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows of a pass that are scored, and whether the most likely tokens are asked for beside the prompt's."""

    runs: list[ScoredRun]
    likely: bool
    sent: Event

    @property
    def count(self) -> int:
        """The number of scores."""
        return sum(run.count for run in self.runs)


class PromptScorer:
    """Scores up to all rows of a pass, `at_once` together. Its memory, in both places, is made once."""

    def __init__(self, device: Device, blocks: RowBlocks, most_rows: int, at_once: int) -> None:
        self._device, self._blocks, self._at_once = device, blocks, at_once
        self._rows = blocks.padded(most_rows)
        self._memories = in_both_places(device, _bytes(self._rows))
        host_numbers, host_inputs = self._parts(self._memories[0].tensor)
        self._host_numbers, self._host_inputs = host_numbers.numpy(), host_inputs.numpy()
        self._numbers_RC, self._inputs_RI = self._parts(self._memories[1].tensor)

    @staticmethod
    def holdings(device: Device, blocks: RowBlocks, most_rows: int) -> list[Holding]:
        """The memory that it takes, place by place."""
        nbytes = _bytes(blocks.padded(most_rows))
        return [Holding("scores of prompts", place.name, nbytes, "max_tokens_per_pass") for place in device.places]

    def _parts(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._rows * COLUMNS
        items = memory.view(torch.int64)[: end + self._rows * INPUTS]
        return items[:end].view(torch.float64).view(-1, COLUMNS), items[end:].view(-1, INPUTS)

    def send(self, pieces: Sequence[Piece]) -> ScoredRows | None:
        """Tell the device which rows of a pass are scored, and for which tokens; None where none are."""
        runs, count, begin = [], 0, 0
        for piece in pieces:
            first, sequence = piece.start + 1, piece.sequence
            known = sequence.prompt_ids[first : first + len(piece.token_ids)] if sequence.scored else ()
            if known:
                inputs = self._host_inputs[count : count + len(known)]
                inputs[:, 0], inputs[:, 1] = np.arange(begin, begin + len(known)), known
                runs.append(ScoredRun(sequence, first, len(known)))
                count += len(known)
            begin += len(piece.token_ids)
        if not runs:
            return None
        padded, at = self._blocks.padded(count), self._rows * COLUMNS * ITEM_BYTES
        self._host_inputs[count:padded] = 0
        sent = self._device.upload(*self._memories, (Copy(at, at, padded * INPUTS * ITEM_BYTES),), ())
        return ScoredRows(runs, any(run.sequence.sampler.prompt_logprobs for run in runs), sent)

    def cuts(self, scored: ScoredRows) -> list[tuple[int, int]]:
        """Rows [begin, end) that are computed together; those behind the last that is scored do not matter."""
        return self._blocks.cuts(0, self._blocks.padded(scored.count), self._at_once)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Which rows of the pass these are; like `add`, only behind the event of `send`."""
        return self._inputs_RI[begin:end, 0]

    def add(self, scored: ScoredRows, begin: int, end: int, first: int, logits_RV: torch.Tensor) -> None:
        """Take note of some rows of a slice, the logits of tokens from `first` on, which may be overwritten."""
        numbers_RC, size = self._numbers_RC[begin:end], logits_RV.shape[1]
        sum_R1, own_R1, values_RK, ids_RK = numbers_RC.split((1, 1, MOST_PROMPT_LOGPROBS, MOST_PROMPT_LOGPROBS), 1)
        if first == 0:
            numbers_RC.fill_(-math.inf)
        place_R1 = self._inputs_RI[begin:end, 1:] - first
        logit_R1 = logits_RV.gather(1, place_R1.clamp(0, size - 1)).double()
        own_R1.copy_(torch.where((place_R1 >= 0) & (place_R1 < size), logit_R1, own_R1))
        if scored.likely:
            logits_RK, tokens_RK = _most_likely(logits_RV, min(MOST_PROMPT_LOGPROBS, size))
            all_RN = torch.cat([values_RK, logits_RK.double()], 1)
            best_RK, at_RK = all_RN.topk(MOST_PROMPT_LOGPROBS)
            ids_RK.copy_(torch.cat([ids_RK, (tokens_RK + first).double()], 1).gather(1, at_RK))
            values_RK.copy_(best_RK)
        # On a CPU the number of rows decides which of them get another exp: fp32 would show it.
        exact = torch.float64 if logits_RV.device.type == "cpu" else torch.float32
        for part_RV in logits_RV.split(SUMMED_LOGITS, 1):
            most_R1 = part_RV.amax(1, keepdim=True)
            shares_RV = part_RV.to(exact).sub_(most_R1).exp_()
            added_R1 = _sums(shares_RV).log_().add_(most_R1)
            sum_R1.copy_(torch.logaddexp(sum_R1, added_R1))

    async def read(self, scored: ScoredRows, after: Event) -> list[tuple[ScoredRun, Found]]:
        """What the slices, behind all of which is `after`, say of each run: of each row, or why its sequence ends."""
        if self._memories[0] is not self._memories[1]:
            copies = (Copy(0, 0, scored.count * COLUMNS * ITEM_BYTES),)
            after = self._device.download(self._memories[1], self._memories[0], copies, (after,))
        await after.wait()
        found: list[tuple[ScoredRun, Found]] = []
        begin = 0
        for run in scored.runs:
            logprobs: list[dict[int, float]] = []
            for done in range(0, run.count, READ_AT_ONCE):
                rows = min(READ_AT_ONCE, run.count - done)
                logprobs += self._logprobs(run, done, self._host_numbers[begin + done : begin + done + rows])
                await asyncio.sleep(0)
            begin += run.count
            wrong = next((at for at, one in enumerate(logprobs) if not all(map(math.isfinite, one.values()))), None)
            found.append((run, logprobs if wrong is None else _not_finite(run.first + wrong)))
        return found

    def _logprobs(self, run: ScoredRun, done: int, numbers_RC: np.ndarray) -> list[dict[int, float]]:
        """Of some rows of a run: of the most likely tokens first, then of the prompt's, where it is none of them."""
        most, sums_R1 = run.sequence.sampler.prompt_logprobs or 0, numbers_RC[:, SUM : SUM + 1]
        own = (numbers_RC[:, OWN] - sums_R1[:, 0]).astype(np.float32).tolist()
        values = (numbers_RC[:, VALUES : VALUES + most] - sums_R1).astype(np.float32).tolist()
        ids = np.nan_to_num(numbers_RC[:, IDS : IDS + most]).astype(np.int64).tolist()
        tokens = run.sequence.prompt_ids[run.first + done : run.first + done + len(own)]
        return [
            {**dict(zip(likely, of_likely, strict=True)), token_id: logprob}
            for likely, of_likely, token_id, logprob in zip(ids, values, tokens, own, strict=True)
        ]


def _sums(shares_RV: torch.Tensor) -> torch.Tensor:
    """The fp64 sum of each row, whose numbers are overwritten: of its halves, while one is too long for a copy in fp64.

    A GPU's own sum has another order for each place of a row modulo 16 bytes, which shows in fp32: a row of an odd
    number of logits would get other bits elsewhere in a pass.
    """
    while (size := shares_RV.shape[1]) > EXACT_SUMMED:
        half = size // 2
        shares_RV[:, :half].add_(shares_RV[:, size - half :])
        shares_RV = shares_RV[:, : size - half]
    return shares_RV.double().sum(1, keepdim=True)


def _most_likely(logits_RV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest logits of each row, and their places. The sets of logits with the greatest ones have them all.

    A look at all sets is one pass over the logits, where `topk` takes many.
    """
    rows, size = logits_RV.shape
    sets = size // SET_LOGITS
    if sets <= FEW_SETS * count:
        return logits_RV.topk(count)
    best_RK1 = logits_RV[:, : sets * SET_LOGITS].view(rows, SET_LOGITS, sets).amax(1).topk(count).indices.unsqueeze(2)
    inside_T = torch.arange(0, sets * SET_LOGITS, sets, device=logits_RV.device)
    rest_N = torch.arange(sets * SET_LOGITS, size, device=logits_RV.device)
    places_RN = torch.cat([(best_RK1 + inside_T).flatten(1), rest_N.expand(rows, -1)], 1)
    best_RK = logits_RV.gather(1, places_RN).topk(count)
    return best_RK.values, places_RN.gather(1, best_RK.indices)


def _not_finite(position: int) -> RequestError:
    return RequestError(
        f"numerical: need finite logits; have others for token {position} of the prompt; "
        "the weights are damaged, or the dtype overflows: try dtype='float32'"
    )


def _bytes(rows: int) -> int:
    return rows * (COLUMNS + INPUTS) * ITEM_BYTES
