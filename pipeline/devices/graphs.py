"""CUDA graphs of one lane: work that launches the same kernels on the same addresses each time is launched as one."""

import logging
from collections.abc import Callable, Hashable

import torch

logger = logging.getLogger("penstock")


class Graphs:
    """What was captured, by key. The first time libraries make their workspaces, the second it is captured.

    They share the memory that they compute in: a lane runs one at a time, and nothing of it is read by the next.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._ran: dict[Hashable, bool] = {}
        """What has run, and whether it may be captured."""

    def replay(self, key: Hashable) -> Callable[[], object] | None:
        """What launches all of it on the current stream; None before it is captured."""
        graph = self._captured.get(key)
        return None if graph is None else graph.replay

    def run(self, key: Hashable, work: Callable[[], object]) -> None:
        """Run `work` on the current stream, or replay what it was captured as."""
        if key in self._captured or (self._ran.get(key) and self._capture(key, work)):
            self._captured[key].replay()
        else:
            work()
            self._ran.setdefault(key, True)

    def clear(self) -> None:
        """Free all of them; none may run."""
        self._captured.clear()
        self._ran.clear()

    def _capture(self, key: Hashable, work: Callable[[], object]) -> bool:
        """Whether `work` could be captured; where it could not, it has not run."""
        graph = torch.cuda.CUDAGraph()
        try:
            # In this mode other threads may go on with calls that cannot be captured.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        except Exception as error:
            self._ran[key] = False
            self._pool = torch.cuda.graph_pool_handle()  # the other one counts as being recorded to
            logger.warning("%s cannot be captured as a CUDA graph, its kernels are launched one by one: %s", key, error)
            return False
        self._captured[key] = graph
        return True
