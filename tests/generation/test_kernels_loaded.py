"""What compiles kernels for a CPU takes memory: it is loaded before the plan, and only where a kernel may be used."""

from typing import Any

import pytest

from pipeline import Model
from pipeline.formats import cpu_compiled
from pipeline.generation import build


@pytest.mark.parametrize(
    ("least", "settings", "expected"),
    [
        (1 << 20, {}, ["plan"]),  # as many numbers as the embedding has
        (2 * 640 * 256, {}, ["kernels", "plan"]),  # gate and up, which are multiplied by as one
        (2 * 640 * 256 + 1, {}, ["plan"]),
        (2 * 640 * 256, {"dtype": "float32"}, ["plan"]),
    ],
    ids=str,
)
async def test_a_model_with_large_matrices_loads_kernels_before_its_plan(
    least: int, settings: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events, draw = list[str](), build.draw_up_sections

    def drawn(*given: Any) -> Any:
        events.append("plan")
        return draw(*given)

    monkeypatch.setattr(build, "draw_up_sections", drawn)
    monkeypatch.setattr(cpu_compiled, "has_dots", lambda: True)
    monkeypatch.setattr(cpu_compiled, "LEAST_NUMBERS", least)
    monkeypatch.setattr(cpu_compiled, "kernels", lambda: events.append("kernels"))
    async with Model.open(device="cpu", **settings):
        assert events[: len(expected)] == expected
