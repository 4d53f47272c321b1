"""What a pass asks of the CUDA driver, by torch's profiler: no memory, and no wait but on threads made for waiting."""

import asyncio
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from pipeline import Model
from pipeline.checkpoints.make_checkpoint import make_checkpoint

pytestmark = pytest.mark.cuda
MEMORY_CALLS = ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaHostRegister", "cudaHostUnregister", "cuMem")
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cuStreamSynchronize", "cuCtxSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync")
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "checkpoint"
    make_checkpoint(out, "llama-3.2-1b", layers=6, hidden_size=4096, ffn_size=4096, vocabulary_size=8192)
    return out


@pytest.mark.parametrize("share", ["nothing stays", "a part stays"])
def test_a_pass_allocates_nothing_and_waits_only_beside(streamed: Path, share: str) -> None:
    """Not a test of the event loop, which the profiler blocks when it starts and when it ends."""
    settings = {"residency": False} if share == "nothing stays" else {"gpu_memory": "1GB", "max_requests": 4}
    profiled, residents, groups = asyncio.run(_profiled(streamed, settings))
    assert bool(residents) == (share == "a part stays")
    # The profiler itself waits for the device before the first pass and after the last.
    launched = [event for event in _driver_calls(profiled) if event.name().startswith(LAUNCHES)]
    first, last = (event.start_ns() for event in (launched[0], launched[-1]))
    calls: Counter[str] = Counter()
    threads: defaultdict[str, set[int]] = defaultdict(set)
    for event in _driver_calls(profiled):
        if first <= event.start_ns() <= last:
            calls[event.name()] += 1
            threads[event.name()].add(event.device_resource_id())
    print(f"\n{share}: {NEW_TOKENS} passes, {groups - residents} groups move in each")
    for name, count in calls.most_common():
        print(f"  {count / NEW_TOKENS:8.1f} a pass on {len(threads[name])} threads  {name}")
    assert not [name for name in calls if name.startswith((*MEMORY_CALLS, *WAITS))]
    launching = set().union(*(threads[name] for name in calls if name.startswith(LAUNCHES)))
    assert not launching & threads["cudaEventSynchronize"]


async def _profiled(folder: Path, settings: dict[str, Any]) -> tuple[profile, int, int]:
    """What some passes ask for, the groups that stay on the device, and all there are."""
    async with Model.open(folder, device="cuda", **settings) as model:
        for _ in range(2):  # what repeats is recorded the second time
            await model.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiled:
            await model.generate([1, 2, 3], max_new_tokens=NEW_TOKENS, ignore_eos=True)
        return profiled, len(model.runtime.residency.stays("device")), len(model.runtime.catalog.order)


def _driver_calls(profiled: profile) -> list[Any]:
    calls = [event for event in profiled.profiler.kineto_results.events() if event.name().startswith("cu")]
    return sorted(calls, key=lambda event: event.start_ns())
