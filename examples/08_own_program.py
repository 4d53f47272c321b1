"""Stream a program that is no language model: blocks that take noise out of vectors, and do not fit on the device."""

import asyncio
import contextlib
import tempfile
from functools import partial, reduce
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline import EngineSettings, Event, Message, Program, Runtime, Slot, TensorSpec, Trace, open_program
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import write_report

WIDTH, BLOCKS, RANK, VECTORS = 1024, 24, 40, 3
GROUPS = {(n, "block"): [TensorSpec("axes", f"blocks.{n}", (RANK, WIDTH))] for n in range(BLOCKS)}


class Denoiser(Program):
    """Each pass takes one vector through all blocks: each takes away the part along its axes."""

    def __init__(self, noisy: list[torch.Tensor], clean: list[torch.Tensor], runtime: Runtime) -> None:
        self.order, self._noisy, self._clean, self._runtime = tuple(GROUPS), noisy, clean, runtime

    async def begin(self) -> torch.Tensor:
        return self._noisy[len(self._clean)].to(self._runtime.device.torch_device, copy=True)

    def step(self, vector: torch.Tensor, message: Message[Slot]) -> list[Event]:
        def work() -> None:
            axes = self._runtime.catalog.tensors(message)["axes"]
            vector.sub_(axes.T @ (axes @ vector))

        self._last = self._runtime.device.launch("compute", work, (message.event,))
        return [self._last]

    async def finish(self, vector: torch.Tensor) -> None:
        await self._last.wait()
        self._clean.append(vector.cpu())


async def main() -> None:
    *blocks, rest = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q.T.contiguous().split(RANK)[: BLOCKS + 1]
    noisy, folder = [rest.sum(0) + torch.randn(WIDTH) / 4 for _ in range(VECTORS)], Path(tempfile.mkdtemp())
    clean: list[torch.Tensor] = []
    save_file({f"blocks.{n}": axes.clone() for n, axes in enumerate(blocks)}, folder / "model.safetensors")
    settings = EngineSettings(device="cpu-copy", gpu_memory="700KB", residency=False)  # as on a GPU with so little
    opened = open_program(folder, GROUPS, partial(Denoiser, noisy, clean), settings, passes=VECTORS, trace=Trace())
    async with contextlib.aclosing(opened) as runtime:
        await runtime.run()
        write_report(page := folder / "report.html", Recording.of(runtime, "08_own_program"))
        now = runtime.statistics()
        print(f"{now.bytes_read:,} bytes moved in {VECTORS} passes, {now.device_groups_peak} blocks at a time: {page}")
    plain = [reduce(lambda vector, axes: vector - axes.T @ (axes @ vector), blocks, one) for one in noisy]
    same = all(torch.allclose(*pair, atol=1e-5) for pair in zip(clean, plain, strict=True))
    print("-- as plain torch computes" if same else f"-- a bug: plain torch computes {plain}, not {clean}")


asyncio.run(main())
