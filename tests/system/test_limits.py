"""Limits of the process: the plan looks at them, and what fails at one says so, whatever it looks like at first."""

import asyncio
import contextlib
import errno
import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import tiny_models

from pipeline import ActorFailed, CheckpointError, ConfigError, Model, RequestError, ResourceError
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.memory import HostMemory
from pipeline.engine.plan import OWN_THREADS
from pipeline.generation.build import build
from pipeline.generation.folder import naming_files
from pipeline.models import decoder
from pipeline.state.spill_file import SpillFile
from pipeline.system.limits import STACK_BYTES, explained, process_bounds, reached_limit
from pipeline.system.small_files import read_small_file
from pipeline.text.tokenizing import Tokenizing

MEGABYTE = 1 << 20
HUGE = 1 << 62
PAGES = {resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: 5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory)


@contextlib.contextmanager
def limited(which: int, limit: int) -> Iterator[None]:
    before, most = resource.getrlimit(which)
    resource.setrlimit(which, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(which, (before, most))


def leaving(which: int, nbytes: int) -> "contextlib.AbstractContextManager[None]":
    """So much more of the process's memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[PAGES[which]])
    return limited(which, pages * mmap.PAGESIZE + nbytes)


def no_descriptor() -> None:
    with limited(resource.RLIMIT_NOFILE, 0):
        os.open("/dev/null", os.O_RDONLY)


def no_room_on_the_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def too_large_a_file(path: Path) -> None:
    with limited(resource.RLIMIT_FSIZE, 10), path.open("wb", buffering=0) as file:
        file.write(bytes(10))
        file.write(b"x")


def no_thread() -> None:
    stack = threading.stack_size(1 << 30)  # larger than any that is kept for reuse
    try:
        with leaving(resource.RLIMIT_AS, MEGABYTE):
            threading.Thread(target=int).start()
    finally:
        threading.stack_size(stack)


FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "python": (lambda: bytearray(HUGE), r"^an allocation failed: out of memory: have .* by the machine"),
    "torch": (
        lambda: torch.empty(HUGE, dtype=torch.uint8),
        r"you tried to allocate 4611686018427387904 .*out of memory",
    ),
    "mmap": (lambda: HostMemory(1 << 60), r"need 1152921504606846976 bytes of host memory: out of memory: have "),
    "descriptors": (no_descriptor, r"'/dev/null': out of file descriptors: have \d+ \(ulimit -n\)"),
    "disk": (no_room_on_the_disk, r"No space left on device: out of room on the disk"),
    "threads": (no_thread, r"^can't start new thread: out of threads, .*have \d+ in this process, "),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_fails_at_a_limit_says_which_one_and_what_there_is(kind: str) -> None:
    fail, told = FAILURES[kind]
    with pytest.raises((OSError, RuntimeError, MemoryError)) as failed:
        fail()
    reached = reached_limit(failed.value)
    assert isinstance(reached, ResourceError)
    assert reached.__cause__ is failed.value
    with pytest.raises(ResourceError, match=told):
        raise reached


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as failed:
        too_large_a_file(tmp_path / "file")
    assert "have 10 bytes (ulimit -f)" not in str(reached_limit(failed.value)), "the limit is another by now"
    assert "a file would be too large" in str(reached_limit(failed.value))


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O error"), RuntimeError("shapes differ"), ValueError("out of memory"), KeyError()]
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert reached_limit(error) is None
    assert explained(error) is error


def test_errors_that_say_already_what_to_do_are_left_alone() -> None:
    for error in (ConfigError("kv_disk: need 5 bytes"), RequestError("too long")):
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        assert explained(error) is error


def test_a_checkpoint_is_not_blamed_for_a_limit(checkpoint: Path) -> None:
    for code in (errno.EMFILE, errno.ENOMEM):
        with pytest.raises(ResourceError), naming_files(checkpoint):
            raise OSError(code, os.strerror(code))
        error = OSError(code, os.strerror(code))
        for cause in (error, reached_limit(error)):
            with pytest.raises(ResourceError), naming_files(checkpoint):
                raise CheckpointError("cannot be read") from cause
    with pytest.raises(CheckpointError), naming_files(checkpoint):
        raise OSError(errno.EIO, "I/O error")


@pytest.mark.parametrize("kind", ["python", "torch", "mmap", "descriptors", "threads"])
async def test_in_a_request_the_failure_names_actor_and_limit_and_the_next_call_works(
    kind: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail, told = FAILURES[kind]
    failed = r"^compute_scheduler failed at layer 0 group 'ffn': ResourceError"
    async with Model.open(checkpoint, device="cpu") as model:
        expected = await model.generate([1, 2], max_new_tokens=2)
        with monkeypatch.context() as patch, pytest.raises(ActorFailed, match=failed) as got:  # noqa: PT012
            patch.setattr(decoder, "ffn_half", lambda *arguments: fail())  # each time: a failure is made good for once
            await model.generate([1, 2], max_new_tokens=2)
        assert isinstance(got.value.__cause__, ResourceError)
        with pytest.raises(ResourceError, match=told):
            raise got.value.__cause__
        assert await model.generate([1, 2], max_new_tokens=2) == expected


@pytest.mark.parametrize(
    ("which", "name"), [(resource.RLIMIT_AS, "address space"), (resource.RLIMIT_DATA, "data")], ids=["as", "data"]
)
def test_a_plan_that_a_limit_cannot_hold_is_refused_by_its_name(which: int, name: str, checkpoint: Path) -> None:
    refused = rf"^host memory: need .*, have .* under the limit of {name} \(ulimit -.\), beside threads"
    with leaving(which, 100 * MEGABYTE), pytest.raises(ConfigError, match=refused):
        build(checkpoint, Config(device="cpu", kv_tokens=1 << 18))
    build(checkpoint, Config(device="cpu", kv_tokens=1 << 18)).device.free()


async def test_what_an_open_model_has_mapped_counts_once_under_a_limit(checkpoint: Path) -> None:
    """It is in the limit's count already, though nobody has touched it."""
    settings = {"device": "cpu", "kv_tokens": 1 << 17}
    async with Model.open(checkpoint, **settings):
        threads = (OWN_THREADS + torch.get_num_threads()) * STACK_BYTES
        with leaving(resource.RLIMIT_DATA, threads + 170 * MEGABYTE):
            build(checkpoint, Config(**settings)).device.free()
        with leaving(resource.RLIMIT_DATA, threads + 100 * MEGABYTE), pytest.raises(ConfigError, match=r"ulimit -d"):
            build(checkpoint, Config(**settings))


@pytest.mark.parametrize(
    ("which", "limit", "told"),
    [
        (resource.RLIMIT_NOFILE, 0, "cannot create a file there: Too many open files: out of file descriptors"),
        (resource.RLIMIT_FSIZE, 4096, r"need 8192 bytes .*: File too large: .* have 4096 bytes \(ulimit -f\)"),
    ],
)
def test_a_folder_for_kv_blocks_is_not_blamed_for_a_limit(which: int, limit: int, told: str, tmp_path: Path) -> None:
    with limited(which, limit), pytest.raises(ResourceError, match=told):
        SpillFile(tmp_path, 8192)


def test_without_limits_there_are_no_bounds() -> None:
    assert process_bounds() == {}
    with leaving(resource.RLIMIT_AS, 50 * MEGABYTE):
        (left,) = process_bounds().values()
    assert 45 * MEGABYTE < left < 55 * MEGABYTE


@pytest.mark.parametrize(
    ("missing", "error", "told"),
    [
        ("asyncio.new_event_loop", OSError(errno.EMFILE, "Too many open files"), "out of file descriptors"),
        ("threading.Thread", RuntimeError("can't start new thread"), "out of threads"),
    ],
)
async def test_closing_that_meets_a_limit_says_so_and_can_be_called_again(
    missing: str, error: Exception, told: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**arguments: object) -> None:
        raise error

    model = await Model.open(checkpoint, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(missing, failing)
        with pytest.raises(ResourceError, match=told):
            await model.aclose()
    await model.aclose()
    assert isinstance(model.runtime.device, CpuDevice)
    assert not model.runtime.device._memory


async def test_a_text_whose_thread_cannot_begin_ends_its_calls_and_later_ones_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with Model.open(device="cpu") as model:
        model.runtime.admission._tokenizing = Tokenizing()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", failing)
            async with asyncio.timeout(5):
                calls = (model.generate("x" * length, max_new_tokens=1) for length in (5, 5, 700))
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ResourceError] * 3
        assert "out of threads" in str(outcomes[0])
        assert (await model.generate("x", max_new_tokens=1)).token_ids


OPENINGS = """
import asyncio, resource, sys
from pathlib import Path
from pipeline import ConfigError, Model, ResourceError

async def main():
    for spare in (1, 20, 300, 1000, 1200, None):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = resource.RLIM_INFINITY if spare is None else size + (spare << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            async with Model.open(sys.argv[1], device="cpu") as model:
                told = str(len((await model.generate([1], max_new_tokens=2, ignore_eos=True)).token_ids))
        except (ResourceError, ConfigError) as error:
            told = "refused"
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(told, flush=True)

asyncio.run(main())
"""


def test_opening_with_little_address_space_to_spare_works_or_is_refused(checkpoint: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OPENINGS, checkpoint], capture_output=True, text=True, check=False, timeout=60
    )
    *told, last = result.stdout.split()
    assert (len(told), last) == (5, "2"), result.stderr
    assert "refused" in told
    assert set(told) <= {"refused", "2"}


def test_a_small_file_is_read_without_room_for_the_largest(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    assert read_small_file(tmp_path / "small", HUGE) == b"x"
    assert asyncio.run(asyncio.to_thread(read_small_file, tmp_path / "small", 1)) == b"x"


def test_errors_that_are_each_others_cause_are_looked_at_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert explained(first) is first
    second.__cause__ = MemoryError()
    assert isinstance(explained(first), ResourceError)
