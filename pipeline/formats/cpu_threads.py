"""Threads that share the blocks of a product out among themselves on a CPU, and compute each block alone.

Left to itself torch shares out each operation, and lets all threads wait for the last one at its end: where other
programs want the cores too, most of a pass would be spent waiting. This pays for work of few long calls that hold no
interpreter lock. The many short ones by which torch decodes a block take longer so: the lock changes hands at each.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence

import torch

from pipeline.system.threads import Threads


def share_out(items: Sequence[int], work: Callable[[int], object]) -> None:
    """Call `work` with each item, on as many threads as torch computes with here. Raises its first error."""
    threads = torch.get_num_threads()
    count = min(threads, len(items))
    if count < 2:
        for item in items:
            work(item)
        return
    waiting, inference = iter(items), torch.is_inference_mode_enabled()

    def work_on() -> None:
        with torch.inference_mode(inference):
            for item in waiting:
                work(item)

    running = [block_threads(threads).submit(work_on) for _ in range(count)]
    errors = [raised for one in running if (raised := one.exception()) is not None]
    if errors:
        raise errors[0]


@functools.cache
def block_threads(count: int) -> Threads:
    """So many. They last as long as the process, and serve all models, so their name is not that of a model's threads.

    In each torch computes with one thread. What was set last it takes for every thread that is yet to begin, or to ask
    for the number the first time, so that each asks before, and the number is set again here once they have.
    """
    ready = threading.Barrier(count + 1)

    def first() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    threads = Threads(count, "cpu-blocks", first)
    try:
        threads.submit(int)
    except RuntimeError:
        ready.abort()
        raise
    ready.wait()
    torch.set_num_threads(count)
    return threads


os.register_at_fork(after_in_child=block_threads.cache_clear)  # a child has none of the threads
