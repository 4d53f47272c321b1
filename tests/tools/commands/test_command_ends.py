"""Commands on unfriendly machines: SIGTERM, few descriptors, too little memory for torch, no current folder."""

import io
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.system.event_loop import run_async
from pipeline.tools.commands.progress import Progress

SIZES = ("--layers", "1", "--hidden-size", "64", "--ffn-size", "128", "--heads", "4", "--kv-heads", "2")
MAKE = ("make-checkpoint", "out", "--like", "llama-3-8b", *SIZES, "--vocabulary-size", "2048")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_sigterm_leaves_nothing_half_made(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Progress, "go_on", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(MAKE)
    assert ended.value.code == 143
    assert list(here.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_that_was_ignored_stays_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Progress, "go_on", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert main(MAKE) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("few_descriptors")
def test_too_few_descriptors_for_an_event_loop_are_told_in_one_line() -> None:
    async def work() -> None:
        raise AssertionError

    with pytest.raises(OSError, match="Too many open files"):
        run_async(work())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory: have "),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of memory: have "),
        (RuntimeError("std::bad_alloc"), "out of memory: have "),
        (RuntimeError("can't start new thread"), "out of threads, or of memory for their stacks: have "),
    ],
    ids=str,
)
def test_too_little_memory_to_load_torch_is_told_in_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.tools.commands.make.make", failing(error))
    assert main(MAKE) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    monkeypatch.setattr("pipeline.tools.commands.make.make", failing(type(error)("something else")))
    if isinstance(error, ImportError | RuntimeError):
        with pytest.raises(type(error), match="something else"):
            main(MAKE)


def test_too_little_address_space_for_torch_is_told_before_it_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (600_000_000, 600_000_000))
    assert main(MAKE) == 1
    assert capsys.readouterr().err.startswith(
        "penstock: need 660 MB of address space to load torch alone, have a limit"
    )


def test_a_current_folder_that_was_deleted_is_told_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = here / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert main(MAKE) == 1
    assert capsys.readouterr().err.startswith("penstock: the current folder was deleted")


def test_progress_of_long_work_comes_ever_more_rarely_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.monotonic", iter(range(36_000)).__next__)
    progress = Progress()
    for second in range(36_000):
        progress.go_on(str(second))
    said = [int(line) for line in capsys.readouterr().err.splitlines()]
    assert said[:5] == [0, 1, 3, 7, 15]
    assert len(said) == 605


def test_a_trace_is_written_also_where_the_reader_of_stdout_has_gone(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def fileno(self) -> int:
            return spare

        def write(self, text: str) -> int:
            raise BrokenPipeError

    spare = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr("sys.stdout", Gone())
    times = ("--layers", "2", "--attn-ms", "8", "--ffn-ms", "12", "--attn-io-ms", "10", "--ffn-io-ms", "10")
    assert main(["simulate", *times, "--policy", "stage1", "--trace", "trace"]) == 0
    bundled = str(Path(__file__).parent.parent.parent.parent / "pipeline" / "bundled")
    assert main(["bench", "pass", bundled, "--passes", "1", "--trace", "passes"]) == 0
    os.close(spare)
    assert all((here / name).stat().st_size for name in ("trace", "passes"))
