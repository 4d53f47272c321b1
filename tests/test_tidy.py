"""Taste as a test: sizes, the one arrow between the packages, bans, and what must not be in the repository."""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path

import pytest

from pipeline.formats.parts import EMBED, KINDS

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for name in ("actors", "pipeline", "tests", "examples") for path in (ROOT / name).rglob("*.py"))
CORE = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "actors"]
SHIPPED = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in {"actors", "pipeline"}]
ACTOR_FILES = [path for path in (ROOT / "actors").glob("*.py") if path.name != "__init__.py"]

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SHIPPED}
MAP = ROOT / "pipeline" / "README.md"
CUTS = {"startswith", "endswith", "partition", "rpartition", "split", "removeprefix", "removesuffix"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    """All of a file; kept, as most tests look at them."""
    return list(ast.walk(tree(path)))


@pytest.fixture(autouse=True, scope="module")
def trees_are_dropped() -> Iterator[None]:
    """Each collection of garbage would walk them, and block the event loop of the tests that follow."""
    yield
    nodes_of.cache_clear()
    tree.cache_clear()


def imports(path: Path) -> set[str]:
    nodes = [node for node in nodes_of(path) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {*names, *(node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))}


def imported_files(module: str) -> set[str]:
    """The files that a file imports, anywhere in it, by module name."""
    nodes = nodes_of(FILES[module])
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= parts & FILES.keys() or {node.module or ""}
    return names & FILES.keys() - {module}


def read_map() -> tuple[dict[Path, str], set[tuple[str, str]]]:
    """The room of each path that the map links to, and all pairs of which the first never imports the second."""
    room_of: dict[Path, str] = {}
    rooms: list[str] = []
    never: set[tuple[str, str]] = set()
    for row in re.findall(r"^\| (\[.*)\|$", MAP.read_text(), re.MULTILINE):
        first, _, last = (cell.strip() for cell in row.split(" |"))
        links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", first)
        named = set(filter(None, last.removeprefix("all but ").split(", ")))
        assert named <= set(rooms), f"{named - set(rooms)}: not above {links[0][0]}"
        never |= set(product([links[0][0]], set(rooms) - named if last.startswith("all but ") else named))
        rooms.append(links[0][0])
        room_of |= {(MAP.parent / target).resolve(): rooms[-1] for _, target in links}
    below = {(room, other) for index, room in enumerate(rooms) for other in rooms[index + 1 :]}
    return room_of, never | below


def test_rooms_import_only_what_the_map_allows() -> None:
    room_of, never = read_map()
    rooms = {}
    for module, path in FILES.items():
        found = [room_of[place] for place in (path, *path.parents) if place in room_of]
        assert found or path.name == "__init__.py", f"{module} is in no room of {name(MAP)}"
        rooms[module] = found[0] if found else "none"
    arrows = {(rooms[module], rooms[other]) for module in FILES for other in imported_files(module)}
    assert len(arrows) > 100
    assert not {f"{room} -> {other}" for room, other in arrows & never}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports under TYPE_CHECKING and in functions count too."""
    try:
        TopologicalSorter({module: imported_files(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_class_name_means_two_things() -> None:
    names = Counter(node.name for path in SHIPPED for node in nodes_of(path) if isinstance(node, ast.ClassDef))
    assert [twice for twice, count in names.items() if count > 1] == []


def test_no_file_name_means_two_things() -> None:
    """Errors of the kernel are those of its users, too; and a command is called like what it runs."""
    commands = ROOT / "pipeline" / "tools" / "commands"
    names = Counter(path.name for path in SHIPPED if commands not in path.parents)
    assert {twice for twice, count in names.items() if count > 1} == {"__init__.py", "errors.py"}


def test_no_two_files_of_tests_are_called_the_same() -> None:
    """pytest imports each under its name alone, and stops before the first test where two have one."""
    names = Counter(path.name for path in SOURCES if path.name.startswith("test_"))
    assert [twice for twice, count in names.items() if count > 1] == []


def asks_for_a_part(node: ast.AST) -> bool:
    """Whether code compares something with the name of a part of a model, or cuts such a name up."""
    if isinstance(node, ast.Compare | ast.MatchValue):
        texts = [str(one.value) for one in ast.walk(node) if isinstance(one, ast.Constant)]
        constants = [one.id.lower() for one in ast.walk(node) if isinstance(one, ast.Name) and one.id.isupper()]
        return any(text.partition(".")[0] in {*KINDS, EMBED, "kv"} for text in (*texts, *constants))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CUTS:
        return ast.unparse(node.func.value).rpartition(".")[2] in {"group", "part", "group[1]", "key[1]"}
    return False


def test_names_of_parts_mean_something_in_their_tables_alone() -> None:
    tables = ("pipeline/formats/parts.py", "pipeline/models/families")
    others = [path for path in SHIPPED if not name(path).startswith(tables)]
    faults = [
        f"{name(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in others
        for node in nodes_of(path)
        if asks_for_a_part(node)
    ]
    assert not faults


def test_files_and_functions_are_short() -> None:
    assert not [name(path) for path in SOURCES if len(path.read_text().splitlines()) >= 300]
    assert not [
        f"{name(path)}: {node.name}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]


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


def banned(path: Path) -> Iterator[str]:
    """Rule 10, and reference points of safety: no bare tasks, no guards that vanish, no code from files.

    The number of threads is the program's, but for threads of our own.
    """
    text = path.read_text()
    for word in ("wait_for(", "torch.load", "pickle.load", "eval(", "set_num_threads", "from_numpy"):
        allowed = word == "set_num_threads" and path.name == "cpu_threads.py"
        if not allowed and word in text.replace("model.eval(", ""):
            yield word
    for node in nodes_of(path):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert"
        statement = node.value if isinstance(node, ast.Expr) else None
        if isinstance(statement, ast.Call) and "asyncio.create_task" in ast.unparse(statement.func):
            yield f"line {node.lineno}: a task without a parent"


def test_shipped_code_keeps_the_bans() -> None:
    assert not [f"{name(path)}: {what}" for path in SHIPPED for what in banned(path)]


UNSEEDED = r"Random\(\)|SystemRandom|(.*\.)?(urandom|uuid4|getrandom|default_rng\(\)|torch\.seed)|secrets\."
UNSEEDED_MODULE = rf"random\.(?!Random\()|random\.Random\(\)|{UNSEEDED}"


def test_nothing_draws_unseeded() -> None:
    """A failure repeats: tests draw from a `Random` with a seed, or from torch, which their conftest seeds."""
    found = []
    for path in (path for path in SOURCES if path.relative_to(ROOT).parts[0] in {"tests", "examples"}):
        nodes = nodes_of(path)
        from_random = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "random"]
        assert {alias.name for node in from_random for alias in node.names} <= {"Random"}, name(path)
        as_module = any(isinstance(node, ast.Import) and node.names[0].name == "random" for node in nodes)
        calls = [f"{ast.unparse(node.func)}({len(node.args) or ''})" for node in nodes if isinstance(node, ast.Call)]
        unseeded = UNSEEDED_MODULE if as_module else UNSEEDED
        found += [f"{name(path)}: {call}" for call in calls if re.match(unseeded, call)]
    assert not found


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
