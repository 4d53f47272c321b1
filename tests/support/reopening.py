"""Two models that a process of its own opens in turn, each under limits that just hold it, and keeps when closed."""

import subprocess
import sys
from pathlib import Path

from pipeline.checkpoints.make_checkpoint import make_checkpoint

OPENINGS = 7
SCRIPT = """
import asyncio, resource, sys, torch
from pathlib import Path
from pipeline import Model, PenstockError
from pipeline.api import BUNDLED
from pipeline.generation.build import build
from pipeline.config import Config
from pipeline.system.limits import ADDRESS_SPACE, HEAP_BYTES, STACK_BYTES, process_uses
from pipeline.system.host_memory import resident_bytes
from pipeline.engine.plan import OWN_THREADS

other, device = Path(sys.argv[1]), sys.argv[2]
SETTINGS = {"device": device, "context_tokens": 64, "kv_tokens": 64, "residency": False}
SPARE = 8 << 20  # what a process takes here and there between two plans; torch adds 25 MB

def tight(folder):
    runtime = build(folder, Config(**SETTINGS))
    runtime.device.free()
    needs = {"host_memory": runtime.plan.need("host"), "gpu_memory": runtime.plan.need("device")}
    return {**SETTINGS, **{name: need + SPARE for name, need in needs.items() if need}}

def limit_address_space(host_bytes):
    # as much as one of them takes at first, and the threads of a process that opens the other
    threads = (OWN_THREADS + torch.get_num_threads() + 2) * (STACK_BYTES + HEAP_BYTES)
    used = process_uses()[ADDRESS_SPACE] + host_bytes - resident_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (used + threads, resource.getrlimit(resource.RLIMIT_AS)[1]))

async def use(folder, settings):
    async with Model.open(folder, **settings) as model:
        await model.generate("Once upon a time", max_new_tokens=4, ignore_eos=True)
    print("opened", folder)
    return model

async def main():
    tight(other)  # imports what planning needs
    limits = {folder: tight(folder) for folder in (BUNDLED, other)}
    if device == "cpu":  # CUDA reserves more than any machine has
        limit_address_space(max(settings["host_memory"] for settings in limits.values()))
    closed = [await use(BUNDLED, limits[BUNDLED]) for _ in range(3)]
    for _ in range(2):
        for folder, settings in limits.items():
            closed.append(await use(folder, settings))
            try:
                await use(folder, {**settings, "host_memory": "100MB"})
            except PenstockError:
                continue
            raise SystemExit("100 MB were enough")

asyncio.run(main())
"""


def open_in_turn(folder: Path, device: str) -> str:
    """What the process said on stderr if it failed; nothing if it opened models `OPENINGS` times."""
    small = {"hidden_size": 64, "ffn_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "layers": 1}
    make_checkpoint(folder, "llama-2-7b", **small)
    ran = subprocess.run([sys.executable, "-c", SCRIPT, folder, device], capture_output=True, text=True, check=False)
    return ran.stderr if ran.returncode or ran.stdout.count("opened") != OPENINGS else ""
