"""Checks of the machine. Nothing is imported until a check needs it: a broken torch must not hide the other checks."""

import importlib.metadata
import importlib.util
import platform
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from pipeline.devices.spinning import BUSY_SHARE, SPIN_LITTLE, load_and_cores
from pipeline.system.threads import usable_cores
from pipeline.tools.doctor.check import Check, guarded
from pipeline.tools.doctor.disk import check_direct_reads
from pipeline.tools.doctor.gpus import check_peers, check_pinned_memory, describe_gpus
from pipeline.tools.doctor.names import check_names

EXTRAS = {
    "hf": ("tokenizers",),
    "cpu": ("numba",),
    "grammar": ("llguidance",),
    "server": ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client"),
    "ray": ("ray",),
    "bench": ("accelerate", "transformers"),
    "bench-gpu": ("diffusers",),
    "bench-llama": ("gguf", "llama_cpp"),
}
"""The modules that optional dependencies bring, by the name to install them by."""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY = Path("/proc/meminfo")


def machine_checks(checkpoint: Path | None) -> list[Check]:
    """Make all checks in the order of their dependence. Direct reads are tried on the checkpoint, if there is one."""
    checks: dict[str, Callable[[], Check]] = {
        "python": check_python,
        "torch": check_torch,
        "cores": check_cores,
        "uvloop": check_uvloop,
        "names": check_names,
        "direct reads": lambda: check_direct_reads(checkpoint),
        "pinned memory": check_pinned_memory,
        "gpu peers": check_peers,
        "memory": check_memory,
        "huge pages": check_huge_pages,
        "extras": check_extras,
    }
    return [guarded(name, check) for name, check in checks.items()]


def check_python() -> Check:
    """Check the interpreter and the operating system."""
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    if sys.platform != "linux":
        return Check("python", "note", found, "Penstock is made for Linux, and tested nowhere else")
    return Check("python", "good", found)


def check_torch() -> Check:
    """Check the build of torch, and what it can use."""
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "build without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    parts = [
        f"{torch.__version__}, {build}",
        f"{torch.backends.cpu.get_cpu_capability()}",
        f"{threads} threads for {cores} cores",
        describe_gpus() if usable else "no GPU",
    ]
    found, files = " · ".join(parts), _gpu_files()
    if torch.version.cuda and files and not usable:
        why = "".join(f" · {str(one.message).splitlines()[0]}" for one in said[:1])
        found += f", though {', '.join(files)} is there{why}"
        what = "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES; the driver may be too old for this build of torch"
        return Check("torch", "bad", found, what)
    if files and not usable:
        return Check("torch", "note", f"{found}, though {', '.join(files)} is there", "install a CUDA build of torch")
    if threads > cores:
        return Check("torch", "note", found, f"more threads than cores slow each other: set OMP_NUM_THREADS={cores}")
    return Check("torch", "good", found)


def check_cores() -> Check:
    """Check whether other programs use the cores: waiting threads of torch spin, and keep cores from the others."""
    load, cores = load_and_cores()
    found = f"{usable_cores()} usable; in the last minute {load:.1f} programs ran or waited for one of all {cores}"
    if load < BUSY_SHARE * cores:
        return Check("cores", "good", found)
    what = f"passes and forecasts vary; set {SPIN_LITTLE} for programs of yours, as commands do for themselves"
    return Check("cores", "note", found, what)


def _gpu_files() -> list[str]:
    """Return what a driver shows of its GPUs, whatever torch can do with them."""
    return sorted(str(file) for file in Path("/dev").glob("nvidia[0-9]*"))


def check_uvloop() -> Check:
    """Check whether uvloop is there, and a loop of it runs."""
    import asyncio

    try:
        import uvloop
    except ImportError as error:
        found = f"{error}; asyncio works, and takes a little more time for each weight group"
        return Check("uvloop", "note", found, "pip install uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))
    return Check("uvloop", "good", f"{importlib.metadata.version('uvloop')} runs")


def check_memory() -> Check:
    """Check how much memory this process may still take."""
    from pipeline.system.host_memory import available_host_bytes
    from pipeline.system.sizes import human_bytes

    if not MEMORY.exists():
        return Check("memory", "bad", f"no {MEMORY}", "a model is planned by what is free, and so needs Linux")
    return Check("memory", "good", f"{human_bytes(available_host_bytes())} of host memory may be taken")


def check_huge_pages() -> Check:
    """Check whether weight slots can lie in huge pages, which direct reads fill faster."""
    if not HUGE_PAGES.exists():
        what = "this kernel has no huge pages, and direct reads are slower without"
        return Check("huge pages", "note", f"no {HUGE_PAGES}", what)
    text = HUGE_PAGES.read_text().strip()
    chosen = re.search(r"\[(\w+)\]", text)
    if chosen is None or chosen[1] == "never":
        what = f"direct reads are slower without them; as root: echo madvise > {HUGE_PAGES}"
        return Check("huge pages", "note", text, what)
    return Check("huge pages", "good", chosen[1])


def check_extras() -> Check:
    """Check which optional dependencies can be imported; none is needed."""
    extras = []
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        extras.append(f"{extra} {'no, needs ' + ', '.join(missing) if missing else 'yes'}")
    return Check("extras", "good", " · ".join(extras))
