"""Stream a program that is no language model: blocks that take noise out of vectors, and do not fit on the device."""

import asyncio
import contextlib
import functools
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline import EngineSettings, Message, Program, Runtime, Slot, TensorSpec, Trace, open_program
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import write_report

WIDTH, BLOCKS, RANK, VECTORS = 1024, 24, 40, 3
GROUPS = {(n, "block"): [TensorSpec("axes", f"blocks.{n}", (RANK, WIDTH))] for n in range(BLOCKS)}


class Denoiser(Program):
    order = tuple(GROUPS)

    def __init__(self, noisy: list[torch.Tensor], clean: list[torch.Tensor], runtime: Runtime) -> None:
        self._noisy, self._clean, self._runtime = noisy, clean, runtime

    async def begin(self) -> torch.Tensor:
        return self._noisy[len(self._clean)].to(self._runtime.device.torch_device, copy=True)

    def step(self, vector: torch.Tensor, message: Message[Slot]) -> list:
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
    noisy, clean, folder = [rest.sum(0) + torch.randn(WIDTH) / 4 for _ in range(VECTORS)], [], Path(tempfile.mkdtemp())
    save_file({f"blocks.{n}": axes.clone() for n, axes in enumerate(blocks)}, folder / "model.safetensors")
    settings = EngineSettings(device="cpu-copy", gpu_memory="700KB", residency=False)  # as on a GPU with so little
    make = functools.partial(Denoiser, noisy, clean)  # each pass takes one vector through all blocks
    opened = open_program(folder, GROUPS, make, settings, passes=VECTORS, trace=Trace())
    async with contextlib.aclosing(opened) as runtime:
        await runtime.run()
        write_report(page := folder / "report.html", Recording.of(runtime, "08_own_program"))
        now = runtime.statistics()
        print(f"{now.bytes_read:,} bytes moved in {VECTORS} passes, {now.device_groups_peak} blocks at a time: {page}")
    plain = [functools.reduce(lambda vector, axes: vector - axes.T @ (axes @ vector), blocks, one) for one in noisy]
    same = all(torch.allclose(*pair, atol=1e-5) for pair in zip(clean, plain, strict=True))
    print("-- as plain torch computes" if same else f"-- a bug: plain torch computes {plain}, not {clean}")


asyncio.run(main())
