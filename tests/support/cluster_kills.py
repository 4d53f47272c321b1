"""Kills a section of a model on two nodes of a Ray cluster, again and again, while requests come and go:

    PYTHONPATH=.:tests python tests/support/cluster_kills.py FOLDER 20

Every request must end with the tokens of a quiet run, or with one error that names a section; after each kill a new one
must succeed; and at the end no block is held, and nothing that the process has opened is left.
"""

import asyncio
import collections
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipeline import Model
from pipeline.cluster.cluster_sections import SectionDied

STORE_BYTES = 100 << 20
CALLERS, PROMPTS, HANGS_SECONDS = 4, 6, 120
NAMED = re.compile(r"section [01] \(layers? [\d, to]+( and the head)?\) on node \S+ \(\w+\) failed: ConnectionError: ")


async def answer(model: Model, index: int) -> tuple[int, ...]:
    prompt = [1 + index, 2, 3]
    return tuple((await model.generate(prompt, max_new_tokens=6 + index, ignore_eos=True)).token_ids)


async def call(model: Model, expected: list[tuple[int, ...]], ends: collections.Counter[str], first: int) -> None:
    """One caller, who asks for ever."""
    index = first
    while True:
        index = (index + 1) % PROMPTS
        try:
            async with asyncio.timeout(HANGS_SECONDS):
                tokens = await answer(model, index)
            ends["tokens" if tokens == expected[index] else "other tokens"] += 1
        except SectionDied as error:
            ends["error" if NAMED.match(str(error)) else str(error)] += 1
        except TimeoutError:
            ends["hung"] += 1


def held() -> dict[str, int]:
    names = [thread.name for thread in threading.enumerate()]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "threads": len(names),
    }


async def kill_and_come_back(model: Model, victim: int) -> tuple[float, float]:
    """Seconds until all sections have begun anew, and from then on until a new request has its answer."""
    before, begun = model.runtime.opened, time.perf_counter()
    os.kill(before[victim].process, signal.SIGKILL)
    while model.runtime.opened is before:
        await asyncio.sleep(0.02)
    back = time.perf_counter()
    await answer(model, 0)
    return back - begun, time.perf_counter() - back


async def main() -> None:
    folder, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(1)
    node = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False)
    async with Model.open(folder, cluster=cluster.address, kv_tokens=512, context_tokens=128) as model:
        expected = [await answer(model, index) for index in range(PROMPTS)]
        ends: collections.Counter[str] = collections.Counter()
        callers = [asyncio.create_task(call(model, expected, ends, first)) for first in range(CALLERS)]
        await asyncio.sleep(1)
        before = held()
        for number in range(kills):
            await asyncio.sleep(draw.uniform(0.1, 1.0))
            restarted, answered = await kill_and_come_back(model, victim := draw.randrange(2))
            print(
                f"kill {number}: section {victim} back after {restarted:.1f} s, answers {answered:.2f} s later",
                flush=True,
            )
        await asyncio.sleep(1)
        after = held()
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        await answer(model, 0)
        batcher = model.runtime.admission.batcher
        print(f"requests {dict(ends)}; before {before}, after {after}")
        print(f"blocks held {batcher.pool.used}, requests {batcher.running} running and {batcher.waiting} waiting")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
