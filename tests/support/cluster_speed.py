"""How fast a model is over 1, 2 and 4 nodes of a Ray cluster on this machine, whose disks and memories are limited:

    export NODE_BYTES_PER_SECOND=60e6 NODE_MEMORY_BYTES=100000000 OMP_NUM_THREADS=1 PYTHONPATH=.:tests
    python tests/support/cluster_speed.py FOLDER 1 2 4

For each number of nodes one request alone, and as many requests as nodes; `limited_node` says what the limits are.
"""

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from support.limited_node import BYTES_PER_SECOND, MEMORY_BYTES, LimitedDisk

from pipeline import Model
from pipeline.cluster import open_on_cluster
from pipeline.generation.pass_rates import DISK_BYTES_PER_SECOND

NEW_TOKENS, ROUNDS = 8, 5
STORE_BYTES = 100 << 20


async def seconds_of(model: Model, requests: int) -> float:
    prompts = [[7 + one, 3, 5] for one in range(requests)]
    arguments: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    begun = time.perf_counter()
    await asyncio.gather(*(model.generate(prompt, **arguments) for prompt in prompts))
    return time.perf_counter() - begun


def resident_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


async def measure(folder: Path, address: str, nodes: int) -> None:
    limits = {"insert": {"disk_reader": [LimitedDisk]}, "host_memory": "480MB", "residency": False}
    async with Model.open(
        folder, cluster=address, sections=nodes, max_requests=8, context_tokens=128, **limits
    ) as model:
        await seconds_of(model, nodes)
        for requests in dict.fromkeys((1, nodes)):
            each = [await seconds_of(model, requests) for _ in range(ROUNDS)]
            token = statistics.median(each) / NEW_TOKENS
            spread = (max(each) - min(each)) / statistics.median(each) / 2
            rate = requests / token
            print(f"{nodes} nodes, {requests} requests: {token:.3f} s per token +- {spread:.0%}, {rate:.2f} tokens/s")
        for record, opened in zip(model.statistics().sections, model.runtime.opened, strict=True):
            print(
                f"  {record}: waited {record.waited_seconds:.2f} s, {resident_bytes(opened.process) >> 20} MiB resident"
            )
        print(f"  layers {model.runtime.remote.plan.owners}", flush=True)


async def main() -> None:
    # Layers are dealt for the disk that is there, and a hop is dear beside it: as it would be beside that of the limit.
    open_on_cluster.HOP_SECONDS *= BYTES_PER_SECOND / DISK_BYTES_PER_SECOND
    folder, counts = Path(sys.argv[1]), [int(count) for count in sys.argv[2:]]
    print(
        f"each node reads {BYTES_PER_SECOND / 1e6:.0f} MB/s and takes at most {MEMORY_BYTES / 1e6:.0f} MB for a section"
    )
    node = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(max(counts) - 1):
        cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False)
    for count in counts:
        await measure(folder, cluster.address, count)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
