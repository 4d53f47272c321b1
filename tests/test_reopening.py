"""Closed models leave room: they are opened again under the limits that held them, and nothing holds their memory."""

import gc
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from support.reopening import open_in_turn

from pipeline import Model
from pipeline.engine.supervisor import Supervisor


def test_a_limit_that_holds_a_model_once_holds_it_again(tmp_path: Path) -> None:
    """By a process in which nothing was computed before, in turn with another, after openings that were refused, while
    closed models are kept."""
    assert open_in_turn(tmp_path / "other", "cpu") == ""


@pytest.fixture
def quick_collections() -> None:
    """Let collections of garbage visit what is made from now on: what other tests have left takes them 0.4 s.

    What was frozen stays so: to thaw it would give back all that was imported before the first test.
    """
    gc.freeze()


@pytest.mark.usefixtures("quick_collections")
async def test_a_closed_model_holds_little_memory_where_it_is_kept_and_none_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_back = Supervisor._run_giving_back

    def slowly(*own: Any) -> None:
        give_back(*own)
        time.sleep(0.05)

    monkeypatch.setattr(Supervisor, "_run_giving_back", slowly)
    model = await Model.open(device="cpu-copy", context_tokens=64)
    await model.generate("Once upon a time", max_new_tokens=2, repetition_penalty=1.1)
    memory = model.runtime.device._memory  # type: ignore[attr-defined]
    taken = [(weakref.ref(one._pages), one.nbytes) for one in memory]
    assert sum(nbytes for _, nbytes in taken) > 8 << 20
    await model.aclose()
    gc.collect()
    assert sum(nbytes for pages, nbytes in taken if pages() is not None) < 1 << 20, "more than views of the last pass"
    runtime = weakref.ref(model.runtime)
    del model
    gc.collect()
    assert runtime() is None, "the thread that closes holds what it closes"
