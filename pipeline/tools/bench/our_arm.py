"""One token a pass by this runtime, and the floors of what it moves and computes, measured in the same process.

`python -m pipeline.tools.bench.our_arm JSON` is a program of its own, so that it runs under the same memory limit as
others; `penstock bench speed` runs it, with features turned off in turn.
"""

import sys
import time
from pathlib import Path
from typing import Any

from pipeline.api import Model
from pipeline.engine.residency import NOTHING_STAYS, Residency
from pipeline.system.event_loop import run_async
from pipeline.tools.bench.arm_program import say
from pipeline.tools.bench.floors import Floors, apart
from pipeline.tools.bench.pass_arm import Passes, PassSettings, serve_passes

FLOOR_ROUNDS = 3
ONE_REQUEST = {"max_requests": 1, "max_tokens_per_pass": 16}
"""As the other programs are told, too: memory for more requests would be kept from the weights."""
SEQUENTIAL = "sequential"


def run(settings: PassSettings) -> Passes:
    """Decode greedily through the line, or, sequentially, read each group and then compute it."""
    room = {**ONE_REQUEST, "context_tokens": settings.context_tokens}
    options = {**room, **settings.options, "dtype": settings.dtype}
    arm = options.pop("arm")
    passes = Passes(arm, settings)
    work = _sequential(passes, options) if arm == SEQUENTIAL else _streamed(passes, options)
    return run_async(work)


async def _streamed(passes: Passes, options: dict[str, Any]) -> Passes:
    folder, prompt = Path(passes.settings.folder), [passes.settings.prompt_id]
    async with Model.open(folder, **options) as model:
        say(f"{passes.arm}: reads {model.runtime.reading}")
        before = time.perf_counter()
        async for chunk in model.stream(prompt, max_new_tokens=passes.wanted, temperature=0.0, ignore_eos=True):
            now = time.perf_counter()
            passes.took(now - before, *chunk.token_ids)
            before = now
        residency, passes.moving_groups = model.runtime.residency, model.runtime.moving_groups
    await _with_floors(passes, options, residency)
    return passes


async def _with_floors(passes: Passes, options: dict[str, Any], residency: Residency) -> None:
    """In the memory that the model gave back. Groups of one kind share theirs, so that it is no more than before."""
    async with apart(Path(passes.settings.folder), options) as runtime:
        floors = Floors(runtime, residency)
        loaded = await floors.load(shared=True)
        await floors.compute_seconds(loaded)
        passes.floors |= {"read": [], "upload": [], "compute": []}
        for _ in range(FLOOR_ROUNDS):
            passes.floors["read"].append(await floors.read_seconds())
            passes.floors["upload"].append(await floors.upload_seconds())
            passes.floors["compute"].append(await floors.compute_seconds(loaded))


async def _sequential(passes: Passes, options: dict[str, Any]) -> Passes:
    """The same reader, the same computing, and nothing beside anything; all groups are read in every pass."""
    async with apart(Path(passes.settings.folder), options) as runtime:
        alone = Floors(runtime, NOTHING_STAYS).sequential(passes.settings.prompt_id, passes.wanted)
        async for seconds, token_id in alone:
            passes.took(seconds, token_id)
        passes.moving_groups = runtime.moving_groups
    return passes


if __name__ == "__main__":
    sys.exit(serve_passes(run, sys.argv[1:]))
