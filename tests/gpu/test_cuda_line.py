"""The whole line on a GPU: parity, the rules that only a device can break, and the overlap. Needs a GPU."""

import asyncio
import gc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from support import tiny_models

from actors.compute_scheduler import ComputeScheduler
from actors.core.budget import Budget
from actors.core.event import Event
from actors.core.line import Line
from actors.core.message import GroupKey
from actors.core.ports import Copy, Program
from actors.core.trace import Span, Trace
from actors.disk_reader import DiskReader
from actors.gpu_uploader import GpuUploader
from actors.pinned_stager import PinnedStager
from actors.prefetch_planner import PrefetchPlanner
from pipeline import ConfigError, Message, Model, Output, Slot, Stage
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.devices.cuda import CudaDevice

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("everything_moves")]
STEPS = 32


@pytest.fixture(scope="module", autouse=True)
def warm_gpu() -> None:
    """The first product of each kind loads libraries for a second or so."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        matrix = torch.ones(64, 64, device="cuda", dtype=dtype)
        (matrix @ matrix).sum().item()


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers of 34 MB attn and 100 MB ffn groups: large enough that copies take milliseconds."""
    out = tmp_path_factory.mktemp("made") / "checkpoint"
    make_checkpoint(out, "llama-3.2-1b", layers=3, hidden_size=4096, ffn_size=4096, vocabulary_size=8192)
    return out


async def greedy(folder: Path, **settings: object) -> Output:
    async with Model.open(folder, device="cuda", **settings) as model:
        return await model.generate(
            tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE
        )


@pytest.mark.parametrize("variant", tiny_models.VARIANTS)
async def test_fp32_tokens_and_logprobs_equal_transformers(variant: str, tmp_path: Path) -> None:
    def reference() -> tiny_models.Greedy:
        return tiny_models.greedy(tiny_models.save_and_read(variant, tmp_path, shards=3), tiny_models.PROMPT, STEPS)

    expected = await asyncio.to_thread(reference)
    output = await greedy(tmp_path)
    assert list(output.token_ids) == expected.token_ids
    assert output.logprobs is not None
    for step, logprobs in enumerate(output.logprobs):
        ours = torch.tensor([logprobs[token_id] for token_id in range(tiny_models.VOCABULARY_SIZE)])
        torch.testing.assert_close(ours, expected.logprobs[step], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
async def test_output_is_bit_equal_for_every_budget_and_queue(dtype: torch.dtype, tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, "llama_gqa_llama3", tmp_path, 2, dtype)
    queues = ("disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler")
    outputs = [
        await greedy(tmp_path, gpu_groups=gpu_groups, host_groups=host_groups, queues=dict.fromkeys(queues, queue))
        for gpu_groups, host_groups, queue in [(1, 1, 1), (2, 2, 1), (3, 1, 4), (4, 4, 2), (8, 3, 8)]
    ]
    assert all(output == outputs[0] for output in outputs)


async def test_steady_state_allocates_nothing(streamed: Path) -> None:
    """Rule 2: after the first passes torch asks the driver for no more memory, and all of it is in the plan."""
    async with Model.open(streamed, device="cuda") as model:  # libraries keep workspaces for each thread and stream
        await model.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True)
    gc.collect()
    held = torch.cuda.memory_allocated()
    async with Model.open(streamed, device="cuda") as model:
        await model.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()
        await model.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True)
        after = torch.cuda.memory_stats()
        plan = sum(holding.nbytes for holding in model.runtime.plan.holdings if holding.place == "device")
    assert after["num_device_alloc"] == before["num_device_alloc"]
    assert after["allocated_bytes.all.peak"] - held <= plan * 1.05
    gc.collect()
    assert torch.cuda.memory_allocated() - held < 1 << 20, "only constants such as rotary frequencies may stay"


async def test_device_slots_keep_rules_2_and_3(streamed: Path) -> None:
    """In each device slot copies and computations never overlap, by the device's own events."""
    slots: dict[int, int] = {}

    class NoteSlot(Stage):
        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            slots[message.seq] = message.at.index
            return message

    trace = Trace()
    async with Model.open(streamed, device="cuda", trace=trace, insert={"gpu_uploader": [NoteSlot()]}) as model:
        await model.generate([1, 2, 3], max_new_tokens=6, ignore_eos=True)
        statistics = model.statistics()
    assert statistics.device_groups_peak <= 4
    uses: dict[int, list[tuple[int, str, Span]]] = {}
    for span in trace.spans:
        if span.what == "work" and span.actor in {"gpu_uploader", "compute_scheduler"}:
            uses.setdefault(slots[span.seq], []).append((span.seq, span.actor, span))
    assert len(uses) == 4
    for spans in uses.values():
        spans.sort(key=lambda use: (use[0], use[1] != "gpu_uploader"))
        for (_, _, left), (_, _, right) in itertools.pairwise(spans):
            # Spans are anchored where the waiting thread woke up, which may be late by its wake-up time.
            assert left.started <= right.started + 3e-3
            assert left.ended <= right.ended + 3e-3


class InstantSource:
    """Weights that are in host memory already."""

    async def read_into(self, key: GroupKey, buffer: object) -> None:
        return


class EvenCatalog:
    """Two kinds of groups, all of the same size."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def kind(self, key: GroupKey) -> str:
        return key[1]

    def copies(self, key: GroupKey) -> Sequence[Copy]:
        return (Copy(0, 0, self.nbytes),)

    def tensors(self, message: Message[Slot]) -> Mapping[str, torch.Tensor]:
        return {}


class Products(Program):
    """A program whose every group multiplies a few matrices."""

    def __init__(self, device: CudaDevice, order: Sequence[tuple[int, str]], products: int) -> None:
        self.device = device
        self.order = order
        self.products = products
        self.matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty_like(self.matrix)
        self.pass_seconds: list[float] = []

    def work(self) -> None:
        for _ in range(self.products):
            torch.mm(self.matrix, self.matrix, out=self.out)

    async def begin(self) -> list[Event]:
        return []

    def step(self, pass_: list[Event], message: Message[Slot]) -> Sequence[Event]:
        pass_.append(self.device.launch("compute", self.work, (message.event,)))
        return pass_[-1:]

    async def finish(self, pass_: list[Event]) -> None:
        await pass_[-1].wait()
        self.pass_seconds.append(time.perf_counter())


@pytest.mark.parametrize("products", [1, 4, 8])
async def test_a_pass_takes_as_long_as_the_slower_of_copies_and_computation(products: int) -> None:
    """Copies of 256 MB (about 5 ms) beside 1, 4 or 8 products (about 1.4 ms each), from host memory."""
    device, trace, nbytes = await asyncio.to_thread(CudaDevice), Trace(), 256_000_000
    kinds = ("attn", "ffn")
    order = [(layer, kind) for layer in range(20) for kind in kinds]
    program = await asyncio.to_thread(Products, device, order, products)
    await device.launch("compute", program.work, ()).wait()

    def budget(place: str, make: Callable[[int], object]) -> Budget:
        return Budget(place, {kind: [make(nbytes) for _ in range(2)] for kind in kinds}, time.perf_counter)

    host = await asyncio.to_thread(budget, "host", device.host_memory)
    memory = budget("device", device.device_memory)
    line = (
        Line(PrefetchPlanner(order, passes=4), catalog=EvenCatalog(nbytes), clock=time.perf_counter, trace=trace)
        .then(DiskReader(InstantSource(), host), queue=4)
        .then(PinnedStager(), queue=4)
        .then(GpuUploader(device, memory), queue=4)
        .then(ComputeScheduler(program), queue=4)
    )
    await line.run()
    await device.aclose()
    work = {
        actor: sum(s.ended - s.started for s in trace.spans if s.actor == actor and s.what == "work" and s.seq >= 80)
        for actor in ("gpu_uploader", "compute_scheduler")
    }
    took = program.pass_seconds[3] - program.pass_seconds[1]
    slower, both = max(work.values()), sum(work.values())
    print(
        f"\n{products} products: copies {work['gpu_uploader']:.4f} s, computing {work['compute_scheduler']:.4f} s, ",
        end="",
    )
    print(f"passes {took:.4f} s: {took / slower:.3f} x the slower, {took / both:.3f} x both in a row")
    assert took <= 1.15 * slower


async def test_device_memory_that_is_not_there_is_refused(streamed: Path) -> None:
    with pytest.raises(ConfigError, match=r"device memory: need .*, have .*; set gpu_groups to at most"):
        await Model.open(streamed, device="cuda", gpu_groups=20_000)
