"""The README and the architecture note: links lead somewhere, snippets run, commands exist."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pipeline import Model, Stage
from pipeline.cli import _parser
from pipeline.generation.parameters import ALIASES, SamplingParameters
from pipeline.generation.requests import CallOptions

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "actors/README.md", "pipeline/README.md")),
    *(ROOT / "pipeline" / room / "README.md" for room in ("cluster", "engine", "server")),
    *(
        ROOT / name
        for name in ("pipeline/bundled/MODEL_CARD.md", "pipeline/bundled-int4/README.md", ".github/CONTRIBUTING.md")
    ),
]
README = PAGES[0].read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
    assert targets or page.name in ("CHANGELOG.md", "MODEL_CARD.md")


def test_the_first_snippet_runs() -> None:
    snippet = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    code = snippet.replace('"path/to/checkpoint", ', "")
    assert code != snippet
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "length" in result.stdout or "stop" in result.stdout


def test_settings_in_the_other_snippets_exist() -> None:
    from pipeline import Config

    snippets = re.findall(r"```python\n(Model\.open\(.*?)```", README, re.DOTALL)
    assert len(snippets) >= 4
    for snippet in snippets:
        arguments = snippet.replace("Model.open(path, ", "dict(")
        Config(**eval(arguments))


async def test_the_stage_sees_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    [snippet] = re.findall(r"```python\n(class .*?)```", README, re.DOTALL)
    names: dict[str, Any] = {"Model": Model, "Stage": Stage, "path": None}
    await eval(compile(snippet, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    await names["model"].generate("def ", max_new_tokens=1)
    await names["model"].aclose()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24
    assert lines[0].startswith("0 attn ")


def test_the_table_of_arguments_is_complete() -> None:
    [table] = re.findall(r"^\| an argument of .*?\n\n", README, re.DOTALL | re.MULTILINE)
    told = {name: ast.literal_eval(default) for name, default in re.findall(r"`(\w+)=([^`]+)`", table)}
    assert told == {one.name: one.default for kind in (SamplingParameters, CallOptions) for one in fields(kind)}
    assert all(f"`{alias}`" in table for alias in ALIASES)


def test_commands_in_the_table_parse() -> None:
    commands = re.findall(r"\| `penstock ([^`]+)` \|", README)
    assert len(commands) >= 4
    for command in commands:
        _parser().parse_args(shlex.split(command))


def test_the_api_reference_has_a_row_for_every_setting_and_argument() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / ".github" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    row = re.compile(r"^\| `(\w+)=.*? \| \S.*? \| `", re.MULTILINE)
    names = [{one.name for kind in kinds for one in fields(kind)} for _, _, kinds in reference.TABLES]
    rows = [row.findall(reference.table(kinds)) for _, _, kinds in reference.TABLES]
    assert [sorted(row) for row in rows] == [sorted(name) for name in names]
