"""Taste as a test: sizes, the one arrow between the packages, bans, and what must not be in the repository."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for name in ("actors", "pipeline", "tests", "examples") for path in (ROOT / name).rglob("*.py"))
CORE = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "actors"]
SHIPPED = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in {"actors", "pipeline"}]
ACTOR_FILES = [path for path in (ROOT / "actors").glob("*.py") if path.name != "__init__.py"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {*names, *(node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 300
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", CORE, ids=name)
def test_actors_import_only_the_standard_library(path: Path) -> None:
    """Rule 5, and the one arrow: `pipeline` imports `actors`, never the other way round."""
    for module in imports(path):
        first = module.split(".")[0]
        assert first == "actors" or first in sys.stdlib_module_names, module
    assert not imports(path) & {"time", "threading", "os", "io", "pathlib", "concurrent.futures"}


@pytest.mark.parametrize("path", ACTOR_FILES, ids=name)
def test_every_actor_looks_like_its_siblings(path: Path) -> None:
    module = tree(path)
    docstring = ast.get_docstring(module) or ""
    for line in ("Takes:", "Gives:", "Holds:", "Fails:"):
        assert re.search(rf"^{line}  \S", docstring, re.MULTILINE), line
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    assert [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", one.name).lower() for one in classes] == [path.stem]
    assert len(path.read_text().splitlines()) < 150


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_shipped_code_keeps_the_bans(path: Path) -> None:
    """Rule 10, and reference points of safety: no bare tasks, no guards that vanish, no code from files."""
    text = path.read_text()
    for banned in ("wait_for(", "torch.load", "pickle.load", "eval(", "set_num_threads", "from_numpy"):
        assert banned not in text.replace("model.eval(", ""), banned
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree(path)))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            assert "asyncio.create_task" not in ast.unparse(node.value.func), "a task without a parent"


def test_help_and_the_core_need_no_torch() -> None:
    code = (
        "import sys, actors.core.line, pipeline.cli as cli; cli._parser().format_help(); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_nothing_large_or_local_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for entry in filter(None, listed.decode().split("\0")):
        path = ROOT / entry
        assert path.stat().st_size < 20_000_000, entry
    top = {Path(entry).parts[0] for entry in listed.decode().split("\0") if entry}
    assert {entry for entry in top if not entry.startswith(".")} == {
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "actors",
        "examples",
        "findings",
        "pipeline",
        "pyproject.toml",
        "tests",
    }
