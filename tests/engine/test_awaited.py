"""What lines wait for is told in words: of each line the wait that others stand behind."""

from types import SimpleNamespace
from typing import Any, cast

from actors.core.line import Line
from pipeline.engine.awaited import awaited

MESSAGE = SimpleNamespace(layer=3, group="ffn", at=SimpleNamespace(filler="disk_reader"))


def line(**waits: str | None) -> Line:
    actors = [
        SimpleNamespace(name=name, waits_for=None if what is None else (what, MESSAGE)) for name, what in waits.items()
    ]
    return cast("Line", SimpleNamespace(actors=actors))


def test_the_wait_nearest_to_the_end_is_told_but_for_those_that_another_line_or_actor_ends() -> None:
    where = "at layer 3 group 'ffn'"
    cases: dict[str, dict[str, Any]] = {
        f"stager waits for bytes on their way from disk_reader {where}": {
            "reader": "slot",
            "stager": "event",
            "end": None,
        },
        f"reader waits for a slot {where}": {"reader": "slot", "stager": "room", "end": "hop"},
        f"end waits for the end of what was launched {where}": {"stager": "event", "end": "result"},
        "": {"reader": None, "end": None},
    }
    for said, waits in cases.items():
        assert awaited([line(**waits)]) == said
    assert awaited([line(**one) for one in cases.values()]) == "; ".join(filter(None, cases))
