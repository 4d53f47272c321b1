"""Chooses a token from each of several rows of logits at once, with torch operations where the logits are.

Likelihoods are whole numbers here: they add up to the same in any order, so that a row gives the same token alone and
among others. All work is done in `Scratch`, so nothing of the vocabulary's size is allocated.
Shape letters: R rows, V vocabulary, P the same in whole blocks, B blocks of T tokens, N bins.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

SEEN, RULED_OUT, FORCED, COUNT_BITS = 1, 2, 4, 3
ONCE = 1 << COUNT_BITS
"""What a table says of a token: prompt or answer hold it; it must not come; it must, or another such one; and, in units
of ONCE, how often the answer holds it."""
BLOCK_TOKENS = 256
MOST_LIKELIHOOD = 2**62
"""The likelihoods of a row add up to less."""
FINE_BITS = 15
"""The order of two distances is that of their 31 bits, which are looked at in two steps: the first 16, then these."""
BINS = 1 << 16
INFINITE_KEY = 0x7F800000


COLUMNS = 10
"""The numbers of a row."""


class Filters(NamedTuple):
    """What rows that are computed together have in common: which steps their settings need."""

    greedy: bool
    penalised: bool
    ruled: bool
    top_k: bool
    top_p: bool
    min_p: bool


@dataclass(frozen=True, slots=True)
class RowSettings:
    """What each row has set, [R, 1]. `farthest` is what min-p says: how far below the best a score may be."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    farthest: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    uniform: torch.Tensor

    @classmethod
    def of(cls, numbers_RC: torch.Tensor) -> "RowSettings":
        """From a row of fp64 for each."""
        exact, rounded = numbers_RC.split(1, -1), numbers_RC.float().split(1, -1)
        top_k = exact[1].to(torch.int64)
        return cls(rounded[0], top_k, exact[2], rounded[3], rounded[4], rounded[5], rounded[6], exact[7])


class Scratch:
    """Fixed memory for `rows` rows: scores that are overwritten, and what is computed of them."""

    def __init__(self, memory: torch.Tensor, rows: int, vocabulary_size: int) -> None:
        """`memory`: `nbytes` of uint8, on the device."""
        self.rows, self.vocabulary_size = rows, vocabulary_size
        padded, begin = _padded(vocabulary_size), 0

        def part(columns: int, dtype: torch.dtype) -> torch.Tensor:
            nonlocal begin
            begin, first = begin + rows * columns * dtype.itemsize, begin
            return memory[first:begin].view(dtype).view(rows, columns)

        self.likely = part(padded, torch.int64)
        self.index = part(padded, torch.int64)
        self.bins = part(BINS, torch.int64)
        self.scores = part(padded, torch.float32)
        self.other = part(padded, torch.int32)
        self.mask = part(padded, torch.bool)
        self.one = torch.ones(1, 1, dtype=torch.int64, device=memory.device)

    @staticmethod
    def nbytes(rows: int, vocabulary_size: int) -> int:
        """The memory that it takes, without what sums over blocks and bins take for a moment."""
        return rows * (_padded(vocabulary_size) * (8 + 8 + 4 + 4 + 1) + BINS * 8)


def choose(
    scratch: Scratch,
    logits_LV: torch.Tensor,
    tables_SV: torch.Tensor,
    numbers_RC: torch.Tensor,
    filters: Filters,
    process: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Choose a token for each of at most as many rows as `scratch` has, which are alike in `filters`.

    Of a row of numbers the first tells where its logits are, the second where its table, the others its `RowSettings`.
    `process` changes the scores before anything is drawn. The logits are not modified.

    Returns [R, 4] fp64: the most likely token and its logit, the chosen token and the best score. Where one of these
    values is not finite, the token before it means nothing.
    """
    rows, size = len(numbers_RC), scratch.vocabulary_size
    settings, (logits_R, tables_R) = RowSettings.of(numbers_RC[:, 2:]), numbers_RC[:, :2].long().unbind(-1)
    scores_RV = scratch.scores[:rows, :size]
    torch.index_select(logits_LV, 0, logits_R, out=scores_RV)
    likely_R1 = chosen_R1 = scores_RV.argmax(-1, keepdim=True)
    logit_R1 = score_R1 = scores_RV.gather(1, likely_R1)
    if filters.penalised:
        penalise(scratch, tables_SV, tables_R, settings, ruled=filters.ruled)
    if process is not None:
        process(scores_RV)
    if filters.penalised or process is not None:
        chosen_R1 = scores_RV.argmax(-1, keepdim=True)
        score_R1 = scores_RV.gather(1, chosen_R1)
    if not filters.greedy:
        chosen_R1 = draw(scratch, rows, settings, filters)
    return torch.cat([likely_R1.double(), logit_R1.double(), chosen_R1.double(), score_R1.double()], -1)


@contextmanager
def biased(logits_LV: torch.Tensor, biases_2N: torch.Tensor) -> Iterator[None]:
    """Add numbers to logits for a while: where each goes among all of them, then by how much."""
    if not biases_2N.shape[1]:
        yield
        return
    places_N = biases_2N[0].long()
    logits_N = logits_LV.view(-1)[places_N]
    logits_LV.view(-1)[places_N] = logits_N + biases_2N[1].float()
    yield
    logits_LV.view(-1)[places_N] = logits_N


def log_probabilities(
    scratch: Scratch, logits_LV: torch.Tensor, numbers_RC: torch.Tensor, chosen_RN: torch.Tensor, count: int
) -> torch.Tensor:
    """Of the tokens that `choose` chose, and of the `count` most likely ones, of the logits alone: [R, 1 + 2 count].

    First that of the chosen one, then those of the most likely ones, then the ids of these; fp64.
    """
    rows, size = len(numbers_RC), scratch.vocabulary_size
    rows_R, chosen_R1 = numbers_RC[:, 0].long(), chosen_RN[:, 2:3].long()
    logprobs_RV = torch.index_select(logits_LV, 0, rows_R, out=scratch.scores[:rows, :size])
    logprobs_RV = torch.log_softmax(logprobs_RV, -1, out=scratch.other.view(torch.float32)[:rows, :size])
    values_RN, ids_RN = logprobs_RV.topk(count)
    return torch.cat([logprobs_RV.gather(1, chosen_R1).double(), values_RN.double(), ids_RN.double()], -1)


def penalise(
    scratch: Scratch, tables_SV: torch.Tensor, which_R: torch.Tensor, settings: RowSettings, *, ruled: bool
) -> None:
    """Repetition over prompt and output (CTRL, arXiv 1909.05858), presence and frequency over output (OpenAI).

    Then -inf for what is ruled out, and 0 for what is forced: a table that forces a token rules out all others.
    `which_R` tells which of the tables belong to the scores. Where no row is `ruled`, none is looked for.
    """
    rows, size = len(which_R), scratch.vocabulary_size
    scores_RV, spare_RV = scratch.scores[:rows, :size], scratch.other[:rows, :size]
    bits_RV, tables_RV = (half[:rows, :size] for half in scratch.index.view(torch.int32).chunk(2, -1))
    first_RV, second_RV = (half[:rows, :size] for half in scratch.likely.view(torch.float32).chunk(2, -1))
    torch.index_select(tables_SV, 0, which_R, out=tables_RV)
    torch.clamp(scores_RV, min=0, out=first_RV).div_(settings.repetition)
    first_RV.add_(torch.clamp(scores_RV, max=0, out=second_RV).mul_(settings.repetition))
    # Of the bits of both, those of the second where the token was seen: choosing by a mask takes many times as long.
    torch.bitwise_and(tables_RV, SEEN, out=bits_RV).neg_()
    torch.bitwise_xor(scores_RV.view(torch.int32), first_RV.view(torch.int32), out=spare_RV).bitwise_and_(bits_RV)
    scores_RV.view(torch.int32).bitwise_xor_(spare_RV)
    counts_RV = first_RV.copy_(torch.bitwise_right_shift(tables_RV, COUNT_BITS, out=bits_RV))
    scores_RV.sub_(torch.mul(counts_RV, settings.frequency, out=second_RV))
    scores_RV.sub_(counts_RV.clamp_(max=1).mul_(settings.presence))
    for bit, score in ((RULED_OUT, -math.inf), (FORCED, 0.0)) if ruled else ():
        torch.ne(torch.bitwise_and(tables_RV, bit, out=bits_RV), 0, out=scratch.mask[:rows, :size])
        scores_RV.masked_fill_(scratch.mask[:rows, :size], score)


def draw(scratch: Scratch, rows: int, settings: RowSettings, filters: Filters) -> torch.Tensor:
    """Draw a token for each row, [R, 1]: the first where the likelihoods so far exceed a share `uniform` of all.

    So one random number chooses a token, whatever the filters leave. Top-k keeps what ties with the last of the top k.
    Top-p keeps the fewest tokens that hold `top_p` of the probability (arXiv 1904.09751), of those that tie with the
    last one the lowest ids. Min-p keeps what is at least `min_p` times as probable as the best (arXiv 2407.01082).
    """
    size, padded = scratch.vocabulary_size, scratch.scores.shape[1]
    unit = MOST_LIKELIHOOD >> (size - 1).bit_length()
    distances_RP, likely_RP, mask_RP = scratch.scores[:rows], scratch.likely[:rows], scratch.mask[:rows]
    scores_RV = distances_RP[:, :size]
    best_R1 = scores_RV.amax(-1, keepdim=True).add_(0.0)  # -0.0 would give distances with a sign
    scores_RV.neg_().add_(best_R1).div_(settings.temperature)
    distances_RP[:, size:] = math.inf
    keys_RP, exponentials_RP = distances_RP.view(torch.int32), scratch.other.view(torch.float32)[:rows]
    likely_RP.copy_(torch.neg(distances_RP, out=exponentials_RP).exp_().mul_(unit))
    farthest_R1 = settings.farthest.view(torch.int32)
    last_R1, ties_R1 = torch.full_like(farthest_R1, INFINITE_KEY), torch.full_like(settings.top_k, padded)
    if filters.top_k:
        last_R1, _ = _find_key(scratch, keys_RP, scratch.one.expand(rows, padded), settings.top_k - 1)
    if filters.top_p:
        if filters.top_k:
            _drop_beyond(scratch, last_R1)
        total_R1 = likely_RP.sum(-1, keepdim=True)
        before_R1 = (total_R1 * settings.top_p).ceil_().to(torch.int64).minimum(total_R1).sub_(1).clamp_(min=0)
        last_R1, over_R1 = _find_key(scratch, keys_RP, likely_RP, before_R1)
        ties_R1 = over_R1.div_(_likelihoods(last_R1, unit).clamp_(min=1), rounding_mode="floor").add_(1)
        ties_R1.masked_fill_(farthest_R1 < last_R1, padded)
    last_R1 = torch.minimum(last_R1, farthest_R1)
    if filters.top_k or filters.top_p or filters.min_p:
        _drop_beyond(scratch, last_R1)
    sums_RB = likely_RP.view(rows, -1, BLOCK_TOKENS).sum(-1)
    if filters.top_p:
        tied_RP = torch.eq(keys_RP, last_R1, out=mask_RP)
        tied_RB = scratch.index[:rows].copy_(tied_RP).view(rows, -1, BLOCK_TOKENS).sum(-1)
        room_RB = (ties_R1 - tied_RB.cumsum(-1)).add_(tied_RB)
        sums_RB -= (tied_RB - room_RB.clamp(min=0)).clamp_(min=0) * _likelihoods(last_R1, unit)
    total_R1 = sums_RB.sum(-1, keepdim=True)
    wanted_R1 = (total_R1 * settings.uniform).to(torch.int64).minimum(total_R1 - 1)
    block_R1, wanted_R1 = _find(sums_RB, wanted_R1)
    likely_RT = _block(likely_RP, block_R1)
    if filters.top_p:
        tied_RT = _block(tied_RP, block_R1)
        likely_RT.masked_fill_(tied_RT & (tied_RT.cumsum(-1) > room_RB.gather(1, block_R1)), 0)
    token_R1, _ = _find(likely_RT, wanted_R1)
    return (block_R1 * BLOCK_TOKENS + token_R1).clamp_(max=size - 1)


def _drop_beyond(scratch: Scratch, last_R1: torch.Tensor) -> None:
    """Tokens that are farther than these keys are not likely at all. In few passes: filling by a mask takes more."""
    rows = len(last_R1)
    beyond_RP = torch.sub(last_R1, scratch.scores[:rows].view(torch.int32), out=scratch.other[:rows])
    kept_RP = beyond_RP.bitwise_right_shift_(31).bitwise_not_()  # all bits, or none
    scratch.likely[:rows].bitwise_and_(scratch.index[:rows].copy_(kept_RP))


def _find_key(
    scratch: Scratch, keys_RP: torch.Tensor, amounts_RP: torch.Tensor, wanted_R1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least key up to which, in the order of keys, the amounts exceed what is wanted; and by how much before it."""
    rows = len(keys_RP)
    index_RP, bits_RP, bins_RN = scratch.index[:rows], scratch.other[:rows], scratch.bins[:rows]
    more_RP = scratch.index.view(torch.int32)[:rows, : keys_RP.shape[1]]
    torch.bitwise_right_shift(keys_RP, FINE_BITS, out=bits_RP).bitwise_and_(BINS - 1)  # NaN may have a sign
    bins_RN.zero_().scatter_add_(1, index_RP.copy_(bits_RP), amounts_RP)
    coarse_R1, wanted_R1 = _find_bin(bins_RN, wanted_R1)
    first_R1 = coarse_R1.int() << FINE_BITS
    # All others go to bins of the upper half, and not to one: adding to the same number again and again is slow.
    torch.bitwise_xor(keys_RP, first_R1, out=bits_RP)
    torch.bitwise_right_shift(bits_RP, FINE_BITS, out=more_RP).clamp_(-1, 1).bitwise_and_(1)
    more_RP.bitwise_left_shift_(FINE_BITS)
    bits_RP.bitwise_and_((1 << FINE_BITS) - 1).bitwise_or_(more_RP)
    bins_RN.zero_().scatter_add_(1, index_RP.copy_(bits_RP), amounts_RP)
    fine_R1, wanted_R1 = _find_bin(bins_RN, wanted_R1)
    return first_R1 | fine_R1.int(), wanted_R1


def _find(amounts_RN: torch.Tensor, wanted_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first place up to which the amounts exceed what is wanted, and what is wanted of it; they are overwritten."""
    sums_RN = amounts_RN.cumsum_(-1)
    place_R1 = torch.searchsorted(sums_RN, wanted_R1, right=True).clamp_(max=sums_RN.shape[1] - 1)
    before_R1 = sums_RN.gather(1, (place_R1 - 1).clamp_(min=0)) * (place_R1 > 0)
    return place_R1, wanted_R1 - before_R1


def _find_bin(amounts_RN: torch.Tensor, wanted_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in a long row: first the block."""
    block_R1, wanted_R1 = _find(amounts_RN.view(len(amounts_RN), -1, BLOCK_TOKENS).sum(-1), wanted_R1)
    place_R1, wanted_R1 = _find(_block(amounts_RN, block_R1), wanted_R1)
    return block_R1 * BLOCK_TOKENS + place_R1, wanted_R1


def _block(values_RN: torch.Tensor, block_R1: torch.Tensor) -> torch.Tensor:
    """One block of each row, [R, T]."""
    index_R1T = block_R1.unsqueeze(-1).expand(-1, 1, BLOCK_TOKENS)
    return values_RN.view(len(values_RN), -1, BLOCK_TOKENS).gather(1, index_R1T)[:, 0]


def _likelihoods(keys_R1: torch.Tensor, unit: int) -> torch.Tensor:
    """Of tokens at these distances, as in `draw`."""
    return keys_R1.view(torch.float32).neg().exp_().mul_(unit).to(torch.int64)


def _padded(vocabulary_size: int) -> int:
    return -(-vocabulary_size // BLOCK_TOKENS) * BLOCK_TOKENS
