"""Models are opened again under the limits that held them, and leave the GPU as they found it."""

import gc
from pathlib import Path

import pytest
import torch
from support.reopening import open_in_turn

from pipeline import Model

pytestmark = pytest.mark.cuda


def test_limits_that_hold_a_model_once_hold_it_again(tmp_path: Path) -> None:
    assert open_in_turn(tmp_path / "other", "cuda") == ""


async def test_what_libraries_keep_for_a_stream_is_used_again() -> None:
    """More often than torch has streams, which it gives out a second time after that."""
    kept = []
    for _ in range(12):
        async with Model.open(device="cuda", residency=False) as model:
            await model.generate("Once upon a time", max_new_tokens=2, ignore_eos=True)
        del model
        gc.collect()  # what is left of a model are cycles
        kept.append(torch.cuda.memory_allocated())
    assert len(set(kept[1:])) == 1, kept
