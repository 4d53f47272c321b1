"""Each check of the machine, on machines that something is wrong with."""

import errno
import os
import sys
import tomllib
import types
import warnings
from pathlib import Path

import pytest
import torch
from support.small_checkpoints import write_small_checkpoint

from pipeline.tools.doctor import disk, machine, names
from pipeline.tools.doctor.check import Check, guarded

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a path without others of our names: one folder of the tests is named actors."""
    others = {place.parent for name in names.OURS for entry in sys.path for place in Path(entry).resolve().glob(name)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() not in others - {ROOT}])
    return tmp_path


def refuse_direct(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def refusing(path: str | Path, flags: int, *arguments: int, **named: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", refusing)


def test_this_machine_is_looked_at_in_order(elsewhere: Path) -> None:
    checks = machine.machine_checks(None)
    assert ", ".join(check.name for check in checks) == (
        "python, torch, cores, uvloop, names, direct reads, pinned memory, gpu peers, memory, huge pages, extras"
    )
    assert all(check.found for check in checks)
    assert {bool(check.to_do) for check in checks if check.verdict == "good"} == {False}
    assert {bool(check.to_do) for check in checks if check.verdict != "good"} <= {True}
    assert list(elsewhere.iterdir()) == [], "the file that was written is gone"


def test_a_check_that_fails_itself_hides_nothing(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    monkeypatch.setattr(machine, "check_uvloop", lambda: 1 // 0)
    checks = {check.name: check for check in machine.machine_checks(None)}
    assert len(checks) == 11
    assert checks["uvloop"].verdict == "bad"
    assert checks["uvloop"].found.startswith("ZeroDivisionError: ")
    assert checks["names"].verdict == "good"


def test_a_torch_that_cannot_be_imported_is_one_bad_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    check = guarded("torch", machine.check_torch)
    assert check.verdict == "bad"
    assert "import of torch halted" in check.found


def test_without_uvloop_asyncio_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_uvloop().verdict == "good"
    monkeypatch.setitem(sys.modules, "uvloop", None)
    check = machine.check_uvloop()
    assert check.verdict == "note"
    assert "asyncio works" in check.found


def test_a_gpu_that_a_cuda_build_cannot_use_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable() -> bool:
        warnings.warn("CUDA initialization: the driver is too old\nand more", stacklevel=1)
        return False

    monkeypatch.setattr(machine, "_gpu_files", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(torch.cuda, "is_available", unusable)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    check = machine.check_torch()
    assert check.verdict == "bad"
    assert check.found.endswith("though /dev/nvidia0 is there · CUDA initialization: the driver is too old")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert machine.check_torch().verdict == "note"
    monkeypatch.setattr(machine, "_gpu_files", list)
    assert "no GPU" in machine.check_torch().found


def test_more_threads_than_cores_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_gpu_files", list)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    check = machine.check_torch()
    assert (check.verdict, "3 threads for 2 cores" in check.found) == ("note", True)
    assert check.to_do.endswith("OMP_NUM_THREADS=2")
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    assert machine.check_torch().verdict == "good"


def test_our_names_are_ours(elsewhere: Path) -> None:
    check = names.check_names()
    assert check.verdict == "good", check
    assert str(Path(names.pipeline.__path__[0]).parent) in check.found


@pytest.mark.parametrize("other", ["actors/__init__.py", "actors.py", "pipeline/__init__.py", "penstock/__init__.py"])
@pytest.mark.parametrize("where", ["the current folder", "the path"])
def test_another_package_of_our_name_is_bad(
    other: str, where: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = elsewhere if where == "the current folder" else tmp_path_factory.mktemp("path")
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_text("raise SystemExit('nobody may run this')")
    if where == "the path":
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    check = names.check_names()
    assert check.verdict == "bad"
    assert f"{folder / other} is another {other.split('/')[0].removesuffix('.py')}" in check.found


def test_the_alias_of_an_editable_install_is_ours(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "penstock").mkdir()
    (elsewhere / "penstock" / "__init__.py").touch()
    assert names.check_names().verdict == "bad"
    information = elsewhere / "penstock_llm-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.4\nName: penstock-llm\nVersion: 0.1.0\n")
    (information / "RECORD").write_text("penstock/__init__.py,,\n_penstock_llm.pth,,\n")
    others = [entry for entry in sys.path if not (Path(entry) / "penstock").exists()]  # of this very environment
    monkeypatch.setattr(sys, "path", [str(elsewhere), *others])
    assert names.check_names().verdict == "good"


def test_a_folder_without_init_gives_way(elsewhere: Path) -> None:
    (elsewhere / "pipeline").mkdir()
    (elsewhere / "pipeline" / "data.csv").write_text("1")
    assert names.check_names().verdict == "good"
    (elsewhere / "pipeline" / "stages.py").write_text("")
    check = names.check_names()
    assert check.verdict == "note"
    assert str(elsewhere / "pipeline") in check.found


def test_halves_from_two_places_are_bad(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("actors")
    other.__path__ = [str(elsewhere / "old" / "actors")]
    monkeypatch.setitem(names.OURS, "actors", other)
    check = names.check_names()
    assert check.verdict == "bad"
    assert f"actors comes from {elsewhere / 'old'}" in check.found


def test_another_distribution_with_our_name_is_bad(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"actors": ["penstock-llm", "theatre"], "pipeline": ["penstock-llm"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: installed)
    check = names.check_names()
    assert (check.verdict, check.found) == ("bad", "the distribution theatre has a top-level actors too")


def test_refused_direct_reads_are_a_note(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_direct(monkeypatch, errno.EINVAL)
    check = disk.check_direct_reads(None)
    assert check.verdict == "note"
    assert str(elsewhere) in check.found
    assert disk.file_system(elsewhere) in check.found
    assert "page cache" in check.to_do
    assert list(elsewhere.iterdir()) == []


def test_a_disk_that_fails_is_bad(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_direct(monkeypatch, errno.EIO)
    check = guarded("direct reads", lambda: disk.check_direct_reads(None))
    assert check.verdict == "bad"
    assert os.strerror(errno.EIO) in check.found


def test_a_system_without_direct_reads_is_a_note(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.system.page_cache.O_DIRECT", 0)
    assert disk.check_direct_reads(None).verdict == "note"


def test_wrong_bytes_are_bad(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(file: Path, nbytes: int) -> bytes:
        return file.read_bytes()[: nbytes - 1] + b"?" if nbytes == 4096 else bytes(nbytes)

    monkeypatch.setattr(disk, "_read_direct", wrong)
    assert disk.check_direct_reads(None).verdict == "bad"


def test_a_folder_that_cannot_be_written_is_a_note(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    check = disk.check_direct_reads(None)
    assert check.verdict == "note"
    assert os.strerror(errno.EROFS) in check.found


def test_of_a_checkpoint_a_file_is_only_read(elsewhere: Path) -> None:
    folder = elsewhere / "model"
    write_small_checkpoint(folder, "llama-3-8b")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    folder.chmod(0o500)
    check = disk.check_direct_reads(folder)
    folder.chmod(0o700)
    assert str(folder) in check.found
    assert check.verdict in ("good", "note"), "a file system may refuse direct reads"
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_file_systems_are_named_by_the_deepest_mount() -> None:
    assert disk.file_system(Path("/proc/self")) == "proc"
    assert disk.file_system(Path("/")) not in ("proc", "unknown file system")


def test_without_proc_nothing_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_memory().verdict == "good"
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    assert machine.check_memory().verdict == "bad"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("always [madvise] never", "good"), ("[always] madvise never", "good"), ("always madvise [never]", "note")],
)
def test_huge_pages(text: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "HUGE_PAGES", tmp_path / "enabled")
    assert machine.check_huge_pages().verdict == "note", "a kernel that has none"
    machine.HUGE_PAGES.write_text(text + "\n")
    assert machine.check_huge_pages().verdict == verdict


def test_missing_extras_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else name)
    told = "hf yes · cpu yes · grammar yes · server yes · ray yes · bench yes · bench-gpu yes"
    assert machine.check_extras() == Check("extras", "good", f"{told} · bench-llama no, needs gguf")


def test_extras_are_those_that_can_be_installed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(machine.EXTRAS) == set(declared) - {"all", "dev"}


def test_off_linux_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_python().verdict == "good"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.check_python().verdict == "note"
