"""Chooses tokens as `drawing` does, in a few Triton kernels on a GPU: each reads the vocabulary of all rows once.

Scores are computed by the same operations, one by one, and what is added up are whole numbers: so are the tokens.
"""

import functools

import torch
import triton

from pipeline.generation import drawing_kernels as kernels
from pipeline.generation.drawing import BINS as BINS_OF_SCRATCH
from pipeline.generation.drawing import BLOCK_TOKENS, COLUMNS, MOST_LIKELIHOOD, Filters, Scratch

CHUNK_TOKENS = 4096
"""Of one program."""
LEVELS = ((20, 2048), (10, 1024), (0, 1024))
"""By how many bits a key of 31 is shifted, and how many bins it falls into then: a search looks at three in turn."""
BINS = sum(bins for _, bins in LEVELS)
COPIES = BINS_OF_SCRATCH // (2 * BINS)
FOUND = 4
"""The key that top-k found, and what it wanted of the tokens there; those of top-p."""


def try_out(device: torch.device, vocabulary_size: int) -> None:
    """Compile and run the kernels. Raises whatever Triton raises."""
    zeros = functools.partial(torch.zeros, device=device)
    scratch = Scratch(zeros(Scratch.nbytes(1, vocabulary_size), dtype=torch.uint8), 1, vocabulary_size)
    logits_1V, numbers_1C = zeros(1, vocabulary_size), zeros(1, COLUMNS, dtype=torch.float64)
    filters = Filters(greedy=False, penalised=True, ruled=True, top_k=True, top_p=True, min_p=True)
    choose(scratch, logits_1V, logits_1V.int(), numbers_1C, filters)
    torch.cuda.synchronize(device)


def choose(
    scratch: Scratch, logits_LV: torch.Tensor, tables_SV: torch.Tensor, numbers_RC: torch.Tensor, filters: Filters
) -> torch.Tensor:
    """As `drawing.choose`."""
    rows, size = len(numbers_RC), scratch.vocabulary_size
    chunks, of_chunk = triton.cdiv(size, CHUNK_TOKENS), CHUNK_TOKENS // BLOCK_TOKENS
    blocks, grid = chunks * of_chunk, (chunks, rows)
    parts = [rows * part for part in (FOUND, 2 * chunks, blocks, blocks)]
    found, bests, sums, tied = scratch.likely.view(-1)[: sum(parts)].split(parts)
    bins = scratch.bins.view(2, -1, COPIES, BINS)
    results_R4 = numbers_RC.new_empty(rows, 4)
    drawn = (scratch.scores, numbers_RC, bests, found)
    greedy, penalised, ruled, top_k, top_p, _ = map(int, filters)
    sizes = {"SIZE": size, "STRIDE": scratch.scores.stride(0), "CHUNKS": chunks}
    exact = {"num_warps": 8, "enable_fp_fusion": False}
    unit = MOST_LIKELIHOOD >> (size - 1).bit_length()
    shape = {**sizes, "K": triton.next_power_of_2(chunks), "UNIT": unit}
    kernels.score[grid](logits_LV, tables_SV, *drawn, penalised, ruled, 1 - greedy, **sizes, C=CHUNK_TOKENS, **exact)
    if not greedy:
        of_bins = {"BINS": BINS, "COPIES": COPIES, **exact}
        for counting in (1,) * top_k + (0,) * top_p:
            bins[counting, :rows], first = 0, 0
            for shift, width in LEVELS:
                level = (bins[counting, :, :, first:], shift, width, counting)
                kernels.count[grid](*drawn, *level, top_k, **shape, **of_bins, C=CHUNK_TOKENS)
                kernels.find[(rows,)](numbers_RC, found, *level, int(first == 0), **of_bins, N=LEVELS[0][1])
                first += width
        kernels.add_blocks[grid](*drawn, sums, tied, top_k, top_p, **shape, **exact, B=of_chunk, T=BLOCK_TOKENS)
    of_row = {"BLOCKS": blocks, "B": triton.next_power_of_2(blocks), "T": BLOCK_TOKENS, **exact}
    kernels.pick[(rows,)](*drawn, sums, tied, results_R4, top_k, top_p, greedy, **shape, **of_row)
    return results_R4
