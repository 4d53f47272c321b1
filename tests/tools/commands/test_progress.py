"""The line that tells what is going on: nothing but it is wiped from a terminal, and it stays in nobody's way."""

import io
import logging
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.tools.commands.progress import LOADING, Progress

BUNDLED = str(Path(__file__).parent.parent.parent.parent / "pipeline" / "bundled")


class Terminal(io.StringIO):
    """Both streams of a process; `rows` are what can be read on it."""

    def isatty(self) -> bool:
        return True

    @property
    def rows(self) -> list[str]:
        return [row.rpartition("\r\x1b[K")[2] for row in self.getvalue().split("\n")]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In the test itself: pytest sets the streams anew after fixtures."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(logging.getLogger("penstock"), "handlers", [])  # the command adds one for this stderr
    return terminal


def test_the_last_line_of_an_answer_stays_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    assert main(["run", BUNDLED, "--prompt", "def f(x):", "--max-new-tokens", "6"]) == 0
    end = next(at for at, row in enumerate(terminal.rows) if row.startswith("tokens "))
    assert terminal.rows[end - 2 : end] == ["def g(x):", ""]
    assert any(row.startswith("model      llama") for row in terminal.rows)


def test_what_is_printed_begins_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal = on_a_terminal(monkeypatch)
    assert main(["verify", str(tmp_path)]) == 1
    assert main(["demo", "--set", "kv_tokens=1"]) == 1
    Progress().say("opening")
    logging.getLogger("penstock").warning("something is odd")
    Progress().say("reading")
    Progress().clear()
    assert "penstock: something is odd" in terminal.rows
    assert [row[:15] for row in terminal.rows[:-1] if not row.startswith("penstock: ")] == []
    Progress().say(LOADING)
    Progress().clear()
    assert terminal.rows[-1] == ""
