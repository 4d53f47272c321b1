"""`import penstock` is `import pipeline`: the same modules, so that each class and each error exists once.

The build installs this file as `penstock/__init__.py`.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

import pipeline

if TYPE_CHECKING:
    from pipeline import *  # noqa: F403


class _SameModules(MetaPathFinder, Loader):
    """Finds `penstock.errors` as the module `pipeline.errors` itself.

    Without it the module would be executed a second time, since `penstock.__path__` is the folder of `pipeline`.
    `python -m penstock` does execute `__main__`, and finds it there.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec where `pipeline` has such a module."""
        if not name.startswith("penstock.") or name == "penstock.__main__":
            return None
        return ModuleSpec(name, self) if importlib.util.find_spec(_in_pipeline(name)) else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of `pipeline` in the place of the new, empty one."""
        name = module.__name__
        sys.modules[name] = importlib.import_module(_in_pipeline(name))


def _in_pipeline(name: str) -> str:
    return "pipeline" + name.removeprefix("penstock")


sys.meta_path.insert(0, _SameModules())
sys.modules[__name__] = pipeline
