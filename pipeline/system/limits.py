"""The limits of the process and its machine: what they leave, and errors that say which of them was reached."""

import contextlib
import errno
import resource
import threading
from collections.abc import Iterator, Mapping

from pipeline.errors import ActorFailed, CheckpointError, PenstockError, ResourceError
from pipeline.system.guard import attempt
from pipeline.system.host_memory import available_host_bytes
from pipeline.system.proc import own_bytes
from pipeline.system.sizes import human_bytes

ADDRESS_SPACE, DATA = "the limit of address space (ulimit -v)", "the limit of data (ulimit -d)"
STACK_BYTES, HEAP_BYTES = 8 << 20, 64 << 20
"""The C library maps these for a thread: a stack is 8 MiB where no limit says how large it is."""
MEMORY_IS_OUT = (
    *("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory"),
    "failed to map segment",
    "std::bad_alloc",
)
"""How torch, whose errors are of type RuntimeError, says so, and the loader of its libraries, with an ImportError."""
DO_MEMORY = "raise the limit or end programs that hold it, or lower kv_tokens, gpu_groups, host_groups or max_requests"


def process_bounds(threads: int = 0, models_bytes: int = 0) -> dict[str, int]:
    """By name, how many bytes each limit of this process leaves it, beside so many threads; nothing without limits.

    A thread has a stack, and in the address space room for a heap. Room for them is not optional: where torch's
    threads find none, their library ends the process. The C library keeps heaps for the next threads: once a model has
    run, whatever the process has grown by counts as theirs, but for the `models_bytes` that open models were promised.
    """
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = STACK_BYTES if stack == resource.RLIM_INFINITY else stack
    bounds = {}
    for name, which, field, thread_bytes in (
        (ADDRESS_SPACE, resource.RLIMIT_AS, 0, stack + HEAP_BYTES),
        (DATA, resource.RLIMIT_DATA, 5, stack),
    ):
        limit = resource.getrlimit(which)[0]
        if limit != resource.RLIM_INFINITY:
            used = _used_bytes(name, field)
            grown = max(0, used - models_bytes - _used_before.get(name, used))
            bounds[name] = max(0, limit - used - max(0, threads * thread_bytes - grown))
    return bounds


_used_before: dict[str, int] = {}
"""The bytes that counted for each limit before the first model was opened that has computed."""


def process_uses() -> dict[str, int]:
    """By name, how many bytes count for each limit now."""
    return {ADDRESS_SPACE: _used_bytes(ADDRESS_SPACE, 0), DATA: _used_bytes(DATA, 5)}


def threads_have_run(used_before: Mapping[str, int]) -> None:
    """A model has computed; so many bytes counted for each limit before it was opened."""
    for name, nbytes in used_before.items():
        _used_before[name] = min(nbytes, _used_before.get(name, nbytes))


def _used_bytes(name: str, field: int) -> int:
    return attempt(f"what counts for {name} cannot be read", lambda: own_bytes(field), 0, "it is taken as 0")


@contextlib.contextmanager
def limits_named() -> Iterator[None]:
    """Raise ResourceError for what fails at a limit of the process or the machine, whatever else it was taken for."""
    try:
        yield
    except Exception as error:
        if (clearer := explained(error)) is not error:
            raise clearer from error
        raise


def explained(error: BaseException) -> BaseException:
    """The error itself, or where a limit is behind it one that says so; the failure of an actor keeps its place."""
    if isinstance(error, PenstockError) and not isinstance(error, ActorFailed | CheckpointError):
        return error
    if (reached := reached_limit(error)) is None:
        return error
    if isinstance(error, ActorFailed):
        return ActorFailed(error.actor, error.layer, error.group, reached, error.computer)
    return reached


def reached_limit(error: BaseException) -> ResourceError | None:
    """The limit behind an error or its causes, which Python lets run in a circle; None where there is none."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, ResourceError):
            return cause
        if advice := _advice(cause):
            reached = ResourceError(f"{str(cause) or 'an allocation failed'}: {advice}")
            reached.__cause__ = cause
            return reached
        cause = cause.__cause__
    return None


def _advice(error: BaseException) -> str | None:
    """Which limit it is, what there is of it, and what to do."""
    code = error.errno if isinstance(error, OSError) else None
    text = str(error).lower() if isinstance(error, RuntimeError | ImportError) else ""
    if isinstance(error, MemoryError) or code == errno.ENOMEM or any(said in text for said in MEMORY_IS_OUT):
        if "cuda" in text:
            return "out of device memory; end other programs that hold it, or lower gpu_memory, kv_tokens or gpu_groups"
        return f"out of memory: have {_memory_left()}; {DO_MEMORY}"
    if "can't start new thread" in text:
        return _threads()
    if code == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"out of file descriptors: have {limit} (ulimit -n); raise the limit, or close files"
    if code == errno.ENFILE:
        return "out of file descriptors: the machine has no more; raise fs.file-max, or close files"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "out of room on the disk: make room, raise the quota, or put kv_disk or the output elsewhere"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return f"a file would be too large: have {limit} bytes (ulimit -f); raise the limit"
    return None


def _memory_left() -> str:
    left = {"the machine and its control groups": available_host_bytes(), **process_bounds()}
    return ", ".join(f"{human_bytes(nbytes)} by {name}" for name, nbytes in left.items())


def _threads() -> str:
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    most = "no limit of processes" if limit == resource.RLIM_INFINITY else f"a limit of {limit} processes (ulimit -u)"
    running = threading.active_count()
    return (
        f"out of threads, or of memory for their stacks: have {running} in this process, {most}, {_memory_left()}; "
        "raise the limit (of a control group: pids.max), or lower reader_lanes"
    )
