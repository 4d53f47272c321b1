"""Checks that the common names `pipeline` and `actors`, and `penstock`, mean ours wherever they are imported."""

import importlib.metadata
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import actors
import pipeline
from pipeline.tools.doctor.check import Check

DISTRIBUTION = "penstock-llm"
OURS = {"pipeline": pipeline, "actors": actors}
ALIAS = "penstock"
"""Another name of `pipeline`, which the build adds: a source tree that is not installed has none."""


def check_names() -> Check:
    """Look at what is imported, at what is installed, and at what lies on the path and in the current folder.

    A folder without `__init__.py` gives way to any package on the path, so ours is found; but its modules are not.
    """
    homes = {name: Path(next(iter(module.__path__))).resolve().parent for name, module in OURS.items()}
    home = homes["pipeline"]
    clashes = [f"{name} comes from {homes[name]}, not from {home}" for name in homes if homes[name] != home]
    installed = importlib.metadata.packages_distributions()
    for name in (*OURS, ALIAS):
        others = sorted(set(installed.get(name, ())) - {DISTRIBUTION})
        clashes += [f"the distribution {other} has a top-level {name} too" for other in others]
    packages, folders = _others(home)
    clashes += [f"{place} is another {name}" for place, name in packages.items()]
    if clashes:
        what = "uninstall or rename the other one, or run in another folder and a virtual environment of its own"
        return Check("names", "bad", "; ".join(clashes), what)
    if folders:
        found = "; ".join(f"{place} is a folder of modules named {name}" for place, name in folders.items())
        return Check("names", "note", found, "it gives way to ours, so its modules cannot be imported: rename it")
    found = f"pipeline and actors come from {home}, and nothing else is named so, or {ALIAS}"
    return Check("names", "good", found)


def _others(home: Path) -> tuple[dict[Path, str], dict[Path, str]]:
    """Modules and packages, and folders of modules, that are named as ours are; by place."""
    packages, folders = {}, {}
    alias = _installed_alias()
    # `python -m` and scripts put the current folder, or their own, first.
    for entry in dict.fromkeys(Path(entry).resolve() for entry in (".", *sys.path)):
        if entry == home:
            continue
        for name in (*OURS, ALIAS):
            spec = PathFinder.find_spec(name, [str(entry)])
            if spec is None or (alias is not None and spec.origin == str(alias)):
                continue
            if spec.origin is not None:
                packages[Path(spec.origin)] = name
            elif any((entry / name).glob("*.py")):
                folders[entry / name] = name
    return packages, folders


def _installed_alias() -> Path | None:
    """Return where the alias is, which an editable install puts into another folder than ours."""
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(installed.locate_file(f"{ALIAS}/__init__.py"))).resolve()
