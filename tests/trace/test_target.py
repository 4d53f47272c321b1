"""A name that cannot be written is refused before the work."""

from pathlib import Path

import pytest

from pipeline import ConfigError, Model
from pipeline.trace.target import check_writable


def test_what_can_be_written_is_let_through(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.html")
    (tmp_path / "old.html").write_text("")
    check_writable(tmp_path / "old.html")


def test_a_folder_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder; give the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere; make it, or write somewhere else"):
        check_writable(tmp_path / "nowhere" / "t.json")


def test_no_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=r"may not be written"):
        check_writable(tmp_path / "t.json")


async def test_a_report_that_cannot_be_written_costs_no_generation(tmp_path: Path) -> None:
    async with Model.open() as model:
        with pytest.raises(ConfigError, match="there is no folder"):
            async with model.report(tmp_path / "nowhere" / "r.html"):
                raise AssertionError("the body must not run")
