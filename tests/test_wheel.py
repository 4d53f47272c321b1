"""What a wheel holds, that `import penstock` is `import pipeline` in it, and what messages say to install."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = [path.relative_to(ROOT / "pipeline") for path in (ROOT / "pipeline").rglob("*.py")]

USE = """
import asyncio, importlib.util, sys
import penstock, pipeline
assert penstock is pipeline and "torch" not in sys.modules
assert pipeline.__path__ == [sys.argv[1] + "/pipeline"], pipeline.__path__
assert penstock.errors is pipeline.errors
assert penstock.__version__ == sys.argv[2]
assert {"Model", "errors", "__version__"} <= set(dir(penstock))

import penstock.reading.source
from penstock.generation import parameters
import pipeline.generation.parameters, pipeline.reading.source
assert parameters is pipeline.generation.parameters
for name in [name for name in sys.modules if name.startswith("penstock.")]:
    assert sys.modules[name] is sys.modules["pipeline." + name.removeprefix("penstock.")], name
assert pipeline.reading.source.__spec__.name == "pipeline.reading.source"
assert importlib.util.find_spec("penstock.nothing") is None

async def main():
    async with penstock.Model.open() as model:
        output = await model.generate("def f(", max_new_tokens=3)
        assert isinstance(output, pipeline.Output) and len(output.token_ids) == 3
        try:
            await model.generate("def f(", max_new_tokens=0)
        except penstock.errors.RequestError as error:
            assert type(error) is pipeline.RequestError
            print(output.text)

asyncio.run(main())
"""


def build(kind: str, folder: Path) -> Path:
    """Build without a network: the backend is installed."""
    code = f"import sys, hatchling.build as backend; print(backend.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an installer unpacks from the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with ZipFile(build("wheel", folder)) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python where it sees the installed wheel and the dependencies; -S hides what is installed as editable."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), sysconfig.get_path("purelib")])}
    python = [sys.executable, "-S", "-W", "error", *command]
    return subprocess.run(python, cwd=site.parent, env=environment, capture_output=True, text=True, check=False)


def test_penstock_is_pipeline_where_the_wheel_is_installed(site: Path) -> None:
    result = run(site, "-c", USE, str(site), PROJECT["version"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_python_runs_it_under_its_name(site: Path) -> None:
    result = run(site, "-m", "penstock", "--version")
    assert (result.returncode, result.stdout) == (0, f"penstock {PROJECT['version']}\n"), result.stderr


def test_the_wheel_holds_what_it_should(site: Path) -> None:
    assert {path.name for path in site.iterdir()} == {
        "actors",
        "penstock",
        "penstock_llm-0.1.0.dist-info",
        "pipeline",
    }
    [information] = site.glob("*.dist-info")
    [command] = PathDistribution(information).entry_points
    assert (command.name, command.value) == ("penstock", "pipeline.cli:main")
    assert (information / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert all((site / name / "py.typed").exists() for name in ("actors", "penstock", "pipeline"))
    for name in ("bundled", "bundled-int4"):
        bundled = {path.name: path.stat().st_size for path in (ROOT / "pipeline" / name).iterdir()}
        assert bundled == {path.name: path.stat().st_size for path in (site / "pipeline" / name).iterdir()}
    expected = {path for path in MODULES if path.parts[0] != "alias"}
    assert {path.relative_to(site / "pipeline") for path in (site / "pipeline").rglob("*.py")} == expected
    named = {path.relative_to(site / "penstock") for path in (site / "penstock").rglob("*.py")}
    assert named == expected - {Path("__main__.py")}, "type checkers find each module under both names"


def test_an_editable_install_has_the_name_too(tmp_path: Path) -> None:
    with ZipFile(build("editable", tmp_path)) as wheel:
        assert {"penstock/__init__.py", "penstock/errors.py"} <= set(wheel.namelist())
        assert wheel.read("_penstock_llm.pth").decode().strip() == str(ROOT)


def test_messages_name_packages_and_never_an_extra_of_another_project() -> None:
    """`penstock` on the public index is somebody else's."""
    requirements = [
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ]
    known = {one.split(";")[0] for one in requirements} | {re.split(r"[;<>=]", one)[0] for one in requirements}
    pages = [path for name in ("actors", "pipeline", "examples") for path in (ROOT / name).rglob("*.py")]
    said = "".join(
        path.read_text() for path in [*pages, *ROOT.glob("*.md"), ROOT / "examples" / "bundled_model" / "README.md"]
    )
    assert not re.search(r"penstock\[|install '?penstock\b(?!-)", said)
    known |= {f"{name}[{extra}]" for name in (PROJECT["name"], ".") for extra in PROJECT["optional-dependencies"]}
    lines = re.findall(r"pip install ([^\"`(\n{#]+)", said) + re.findall(r'(?:installed|NEEDS = )\(.*"([^"\n]+)"', said)
    words = [word.strip("'").rstrip("]").partition("[") for line in lines for word in line.split()]
    asked = [f"{name}[{extra}]" if extra else name for name, _, extras in words for extra in extras.split(",")]
    assert {"tokenizers", "uvloop", "gguf>=0.17"} <= set(asked)
    known |= {"-e", ".", "openai"}  # an example is a client of it
    assert set(asked) <= known, set(asked) - known
