"""How long hidden states take from one Ray node to another, in the ways that there are:

    python tests/support/hop_times.py 2

starts so many nodes on this machine, one actor on each. The rows go round from actor to actor, each of which copies
them into memory of its own before it hands them on. `refs`: the driver chains calls by object references; `direct`: an
actor calls the next with the rows as one argument, `parts`: as arguments below 100 kB; `graph`: a compiled graph.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.dag import InputNode
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PART_BYTES = 96_000
STORE_BYTES = 1 << 30
SIZES = [1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26]
ROUNDS = 7


class Relaying:
    def __init__(self) -> None:
        self.rows: dict[int, np.ndarray] = {}

    def meet(self, ring: list[Any], place: int) -> None:
        self.following, self.first = ring[(place + 1) % len(ring)], ring[0]

    def keep(self, size: int, *parts: np.ndarray) -> np.ndarray:
        own = self.rows.setdefault(size, np.zeros(size, np.uint8))
        at = 0
        for part in parts:
            own[at : at + part.nbytes] = part
            at += part.nbytes
        return own

    def hop(self, rows: np.ndarray) -> np.ndarray:
        return self.keep(rows.nbytes, rows)


class AsyncRelaying(Relaying):
    async def begin(self, size: int, hops: int, part_bytes: int) -> None:
        self.done = asyncio.get_running_loop().create_future()
        await self.take(size, hops, part_bytes)
        await self.done

    async def take(self, size: int, hops: int, part_bytes: int, *parts: np.ndarray) -> None:
        own = self.keep(size, *parts)
        if not hops:
            self.first.end.remote()
            return
        cut = [own[at : at + part_bytes] for at in range(0, size, part_bytes)]
        self.following.take.remote(size, hops - 1, part_bytes, *cut)

    async def end(self) -> None:
        self.done.set_result(None)


def time_it(work: Callable[[], object], hops: int) -> str:
    seconds = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        work()
        seconds.append((time.perf_counter() - begun) / hops * 1000)
    median = statistics.median(seconds[1:])
    return f"{median:8.2f} ({min(seconds[1:]):.2f} to {max(seconds[1:]):.2f})"


def ring_of(kind: type, nodes: list[str]) -> list[Any]:
    on = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    ring = [ray.remote(kind).options(num_cpus=0, scheduling_strategy=one).remote() for one in on]
    ray.get([actor.meet.remote(ring, place) for place, actor in enumerate(ring)])
    return ring


def compiled(ring: list[Any], hops: int) -> Any:
    with InputNode() as rows:
        for hop in range(hops):
            rows = ring[hop % len(ring)].hop.bind(rows)
    return rows.experimental_compile()


def main() -> None:
    count = int(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    ray.init(cluster.address, log_to_driver=False)
    nodes = [node["NodeID"] for node in ray.nodes()]
    ring, plain = ring_of(AsyncRelaying, nodes), ring_of(Relaying, nodes)
    print(f"{count} nodes; milliseconds per hop, median of {ROUNDS} rounds (lowest to highest)")

    def refs(size: int, hops: int) -> None:
        rows: Any = np.zeros(size, np.uint8)
        for hop in range(hops):
            rows = ring[hop % count].hop.remote(rows)
        ray.wait([rows], fetch_local=False)

    for size in SIZES:
        hops = max(8, min(64, (1 << 24) // size))
        ways = {
            "refs": lambda size=size, hops=hops: refs(size, hops),
            "direct": lambda size=size, hops=hops: ray.get(ring[0].begin.remote(size, hops, size)),
            "parts": lambda size=size, hops=hops: ray.get(ring[0].begin.remote(size, hops, PART_BYTES)),
        }
        if size > 1 << 23:
            del ways["parts"]
        for way, work in ways.items():
            print(f"{size >> 10:6d} kB {way:8s}{time_it(work, hops)}", flush=True)
    graph = compiled(plain, 8)
    for size in [size for size in SIZES if size <= 1 << 24]:
        rows = np.zeros(size, np.uint8)
        timed = time_it(lambda rows=rows: ray.get(graph.execute(rows)), 8)
        print(f"{size >> 10:6d} kB {'graph':8s}{timed}", flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
