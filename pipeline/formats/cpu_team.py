"""Threads that wait for work, and do it, without the interpreter lock: what a product on a CPU is shared out by.

A thread of Python wants the lock before it begins with a piece of work and when it has ended, so that eight begin one
after the other, and later than eight matrices take. These sleep in the kernel of the operating system and are woken up
by whoever has work. Each piece of work is a kernel of numba that takes one address. The threads claim parts of the work
by themselves, so that any number of them does all of it: a thread that has not woken up by then is not waited for.
"""

import atexit
import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.formats import cpu_waiting
from pipeline.formats.cpu_waiting import CLOSED, FIRST, SHARED, SIGNATURE, TICKETS, WORDS

LONGEST_SECONDS = 1.0
"""For which the end of a process waits for a thread."""


class Team:
    """Threads that begin when they are first needed, and last as long as the process; they serve all models."""

    def __init__(self) -> None:
        cpu_waiting.make_ready()
        self._shared = np.zeros(SHARED, np.int64)
        self._shared[TICKETS] = CLOSED
        self._threads: list[threading.Thread] = []
        self._begins = threading.Lock()

    def do(self, works: Sequence[Sequence[int]], threads: int) -> None:
        """Do all works on so many threads, this one among them; alone where another one leads the team now.

        A work is the `entry` of its kernel, and what that is given. Works are done at once, so that none may need what
        another one gives. Raises RuntimeError where a thread cannot begin.
        """
        table = np.zeros((len(works), WORDS), np.int64)
        for words, work in zip(table, works, strict=True):
            words[FIRST : FIRST + len(work)] = work
        address = table.__array_interface__["data"][0]
        if threads < 2:
            cpu_waiting.do(address, len(works))
            return
        if len(self._threads) < threads - 1:
            self._begin(threads - 1)
        cpu_waiting.lead(self._shared, threads - 1, address, len(works))

    def end(self) -> None:
        """Let the threads end, and wait for them; none may lead them, unless the process ends."""
        with self._begins:
            cpu_waiting.end(self._shared)
            while self._threads:
                self._threads.pop().join(LONGEST_SECONDS)

    def _begin(self, count: int) -> None:
        with self._begins:
            while (index := len(self._threads)) < count:
                name = f"cpu-team-{index}"
                thread = threading.Thread(target=cpu_waiting.serve, args=[self._shared], name=name, daemon=True)
                thread.start()
                self._threads.append(thread)


@functools.cache
def team() -> Team:
    """That of this process."""
    made = Team()
    atexit.register(made.end)
    return made


os.register_at_fork(after_in_child=team.cache_clear)  # a child has none of the threads


def do_together(works: Sequence[Sequence[int]], most_threads: int) -> None:
    """As `Team.do`, on as many threads as torch computes with here, but at most so many."""
    team().do(works, min(torch.get_num_threads(), most_threads))


@functools.cache
def entry(kernel: Any) -> int:
    """Where a kernel of the `SIGNATURE` begins, for callers that are compiled; it is compiled now if need be."""
    kernel.compile(SIGNATURE)
    compiled = kernel.overloads[SIGNATURE]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))
