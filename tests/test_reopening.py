"""Models are opened again under the limits that held them, by a process in which nothing was computed before."""

from pathlib import Path

from support.reopening import open_in_turn


def test_a_limit_that_holds_a_model_once_holds_it_again(tmp_path: Path) -> None:
    """In turn with another, after openings that were refused, while closed models are kept."""
    assert open_in_turn(tmp_path / "other", "cpu") == ""
