"""Bits per byte of a model over whole files."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from corpus import SourceFile
from transformers import LlamaForCausalLM

IGNORED = -100
WINDOWS_PER_BATCH = 32


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, documents: list[list[int]], files: list[SourceFile], context: int) -> float:
    """Total -log2 likelihood of every token after begin-of-text, end-of-text included, over the files' UTF-8 bytes.

    A window of ``context`` tokens slides by half its length, so after a file's first window each token is
    predicted from at least ``context / 2`` tokens before it.
    """
    windows = [window for document in documents for window in scored_windows(document, context)]
    device = model.device
    total_nats = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, len(windows), WINDOWS_PER_BATCH):
        inputs, targets = torch.tensor(windows[start : start + WINDOWS_PER_BATCH], device=device).unbind(1)
        logits = model(input_ids=inputs, use_cache=False).logits.float()
        total_nats += functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
    return total_nats.item() / math.log(2) / sum(file.byte_count for file in files)


def scored_windows(document: list[int], context: int) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of ``context`` ids each; every target of the document is scored in exactly one window."""
    inputs, targets = document[:-1], document[1:]
    windows = []
    scored = 0
    for start in range(0, len(inputs), context // 2):
        end = min(start + context, len(inputs))
        padding = context - (end - start)
        # Padding on the right cannot be seen by the causal positions before it.
        scored_targets = [IGNORED] * (scored - start) + targets[scored:end] + [IGNORED] * padding
        windows.append((inputs[start:end] + [0] * padding, scored_targets))
        scored = end
        if end == len(inputs):
            break
    return windows
