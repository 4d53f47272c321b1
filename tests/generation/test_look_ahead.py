"""Look-ahead by itself: in passes that a gate lets through, by what passes take and have read."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.generation.look_ahead import LookAhead
from pipeline.generation.pass_gate import PassGate


def line(host: int, *, places: int = 2, experts: int = 20, layers: int = 3) -> Any:
    budgets = [SimpleNamespace(slots={"expert": host}), SimpleNamespace(slots={"expert": 3})][:places]
    catalog = SimpleNamespace(order=[(layer, "expert.0") for layer in range(layers)])
    store = SimpleNamespace(misses=0)
    return SimpleNamespace(budgets=budgets, store=store, room=SimpleNamespace(catalog=catalog, count=experts))


@pytest.mark.parametrize(
    ("setting", "where", "asks"),
    [
        (True, line(20), True),
        (False, line(5), False),
        ("auto", line(5), True),
        ("auto", line(20), False),
        ("auto", line(5, places=1), True),
        ("auto", line(20, places=1), False),
    ],
)
def test_auto_is_for_experts_from_the_disk(setting: bool | str, where: Any, asks: bool) -> None:
    ahead = LookAhead.of(where, setting)
    ahead.begin(1)
    assert ahead.asks is asks


def test_a_gate_hears_of_whole_passes_and_of_what_they_had_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[int]()
    monkeypatch.setattr(PassGate, "took", lambda gate, seconds, reads: told.append(reads))
    where = line(5)
    ahead = LookAhead.of(where, "auto")
    for layers in (3, 2, 3):
        where.store.misses += 100  # of what is no pass
        ahead.begin(1)
        ahead.asked += layers
        where.store.misses += 2 * layers
        ahead.end()
    assert told == [6, 6]
