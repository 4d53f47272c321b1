"""Models by name: the bundled ones, and those of the local Hugging Face cache by their id. Nothing is downloaded.

hub/models--meta-llama--Llama-3.2-1B/refs/main         the commit that `main` was when it was fetched
                                     snapshots/4e20/   the files of a commit, as links
"""

import os
import re
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.system.small_files import NO_FOLDER, os_errors_named, read_small_file, why_no_folder

ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
PREFIX = "models--"
ADDRESS = re.compile(rf"(?:https?:/+)?(?:huggingface\.co|hf\.co)/({ID.pattern})/?", re.ASCII)
"""The address of a model's page, as a browser shows it; a path has one slash where it has two."""
REF_LIMIT_BYTES = 4096
MOST_NAMED = 8
BUNDLED = Path(__file__).parent.parent / "bundled"
BUNDLED_INT4 = BUNDLED.with_name("bundled-int4")
"""The same model, which `penstock convert` has written anew."""


def find_checkpoint(path: Path, name: str = "") -> Path:
    """The folder of a checkpoint: `path` itself, the snapshot in it where it is a folder of the cache, or, where there
    is nothing, the snapshot of the model of that `name` (by default the path as it is written), or a bundled model.

    A path that is neither, or may not be looked into, is returned as it is. Raises CheckpointError for an id that the
    cache has not, and where it is not certain which snapshot counts.
    """
    if os.path.lexists(path):
        repository = path.parent if path.name == "snapshots" else path
        is_cached = repository.name.startswith(PREFIX) and os.path.isdir(repository / "snapshots")
        return _snapshot(repository) if is_cached else path
    if why_no_folder(path) != NO_FOLDER:
        return path
    name = name or str(path)
    for bundled in (BUNDLED, BUNDLED_INT4):
        if name == bundled.name:
            return bundled
    if address := ADDRESS.fullmatch(name):
        name = address[1]
    if not (ID.fullmatch(name) or (name.startswith(PREFIX) and Path(name).name == name)):
        return path
    hub = cache_folder()
    repository = hub / (name if name.startswith(PREFIX) else PREFIX + name.replace("/", "--"))
    if (why := why_no_folder(repository)) and why != NO_FOLDER:
        raise CheckpointError(f"{name}: {repository}, where the Hugging Face cache has it, {why}")
    if why:
        raise CheckpointError(
            f"{name}: no such folder, and no model of that name in the Hugging Face cache {hub}{_which_has(hub)}; give "
            f"the path of a folder, or, if it is a model of the Hub, fetch it first: hf download {_id(repository)}"
        )
    return _snapshot(repository)


def how_to_fetch(folder: Path) -> str:
    """Say how to fetch what is missing in a snapshot of the cache; nothing for other folders."""
    repository = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and repository.name.startswith(PREFIX)
    return f"; fetch what is missing: hf download {_id(repository)} --revision {folder.name}" if is_snapshot else ""


def model_names(folder: Path) -> tuple[str, ...]:
    """What people call the model of a folder: its last part; of a snapshot of the cache that of its id, and the id."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith(PREFIX):
        return (_id(repository).rpartition("/")[2], _id(repository))
    return (folder.absolute().name or "model",)


def cache_folder() -> Path:
    """Where huggingface_hub keeps models, by the same variables of the environment."""
    get = os.environ.get
    caches = get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    home = os.path.expandvars(os.path.expanduser(get("HF_HOME", os.path.join(caches, "huggingface"))))
    hub = get("HF_HUB_CACHE", get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expandvars(os.path.expanduser(hub)))


def _snapshot(repository: Path) -> Path:
    """The one that refs/main names; without refs/main the only one."""
    folder, main = repository / "snapshots", repository / "refs" / "main"
    with os_errors_named(folder):
        there = os.listdir(folder) if os.path.lexists(folder) else []  # a download that was broken off early
        names = sorted(name for name in there if os.path.isdir(folder / name))
    fetch = f"hf download {_id(repository)}"
    if os.path.lexists(main):
        commit = read_small_file(main, REF_LIMIT_BYTES).decode(errors="replace").strip()
        if commit in names:
            return folder / commit
        have = f"refs/main is {commit[:80]!r}, of which no file is there"
        raise CheckpointError(f"{repository}: {have}; fetch it: {fetch}")
    if not names:
        raise CheckpointError(f"{repository}: holds no files of the model; fetch it: {fetch}")
    if len(names) > 1:
        raise CheckpointError(
            f"{repository}: has {len(names)} snapshots, and no refs/main that says which one counts; give the path of "
            f"one: {', '.join(str(folder / name) for name in names[:5])}"
        )
    return folder / names[0]


def _which_has(hub: Path) -> str:
    try:
        names = sorted(_id(hub / name) for name in os.listdir(hub) if name.startswith(PREFIX))
    except OSError:
        return ""  # most people have no such folder
    return f", which has {', '.join(names[:MOST_NAMED])}{', ...' * (len(names) > MOST_NAMED)}" if names else ""


def _id(repository: Path) -> str:
    return repository.name.removeprefix(PREFIX).replace("--", "/", 1)
