"""Hatchling runs this to put the package `penstock` into the wheel, beside `pipeline` and `actors`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent


class AliasHook(BuildHookInterface[Any]):
    """Adds `penstock/__init__.py`, and for type checkers, which run nothing, a file for each module of `pipeline`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the package to a folder of its own; an editable install gets the same files."""
        self._folder = Path(tempfile.mkdtemp())
        shutil.copy(HERE / "penstock.py", self._folder / "__init__.py")
        (self._folder / "py.typed").touch()
        package = Path(self.root) / "pipeline"
        for module in package.rglob("*.py"):
            inside = module.relative_to(package)
            if HERE in module.parents or inside.name == "__main__.py":
                continue
            name = ".".join(("pipeline", *inside.with_suffix("").parts)).removesuffix(".__init__")
            if inside.parts != ("__init__.py",):
                (self._folder / inside).parent.mkdir(parents=True, exist_ok=True)
                (self._folder / inside).write_text(f"from {name} import *\n")
        build_data["force_include"][str(self._folder)] = "penstock"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the folder: the wheel has its files."""
        shutil.rmtree(self._folder)
