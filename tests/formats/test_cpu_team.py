"""Threads that do work together without the interpreter lock."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="needs numba")
from numba import carray, njit

from pipeline.formats import cpu_instructions as cpu
from pipeline.formats import cpu_waiting
from pipeline.formats.cpu_team import Team, do_together, entry, team
from pipeline.formats.cpu_waiting import CALLS, CLAIMED, FIRST, LEFT, SLEEPING, TICKETS, WAITING, WORDS

TURNS, PIECES = 200, 64


@njit(nogil=True)
def count_pieces(address: int) -> None:
    """Add one to each number, each by the thread that claims it, after a while."""
    words = carray(cpu.at_address(address), (WORDS,), np.int64)
    counts = carray(cpu.at_address(words[FIRST + 1]), (words[FIRST + 2],), np.int64)
    piece = cpu.claim(words, CLAIMED, 1)
    while piece < len(counts):
        for _ in range(words[FIRST + 3]):
            cpu.pause()
        counts[piece] += 1
        piece = cpu.claim(words, CLAIMED, 1)


@njit(nogil=True)
def hold(address: int) -> None:
    """The first that comes waits for a second one, which says so, and waits until it may end."""
    words = carray(cpu.at_address(address), (WORDS,), np.int64)
    shared = carray(cpu.at_address(words[FIRST + 1]), (2,), np.int64)
    first = cpu.claim(words, CLAIMED, 1) == 0
    if not first:
        cpu.claim(shared, 0, 1)
    while cpu.peek(shared, 0 if first else 1) == 0:
        cpu.pause()


def work(counts: Any, pauses: int = 0) -> tuple[int, ...]:
    return entry(count_pieces), counts.ctypes.data, len(counts), pauses


def test_all_is_done_once_by_however_many_and_several_works_one_after_the_other() -> None:
    threads, counts = Team(), [np.zeros(PIECES, np.int64) for _ in range(3)]
    for turn in range(TURNS):
        threads.do([work(one, turn % 3) for one in counts], 1 + turn % 4)
    threads.do([], 2)
    assert all((one == TURNS).all() for one in counts)
    threads.end()


def test_callers_at_once_do_their_works_each() -> None:
    threads, counts = Team(), [np.zeros(PIECES, np.int64) for _ in range(4)]

    def call(one: Any) -> None:
        for _ in range(TURNS):
            threads.do([work(one)], 3)

    callers = [threading.Thread(target=call, args=[one]) for one in counts]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert all((one == TURNS).all() for one in counts)
    threads.end()


def wait_until(true: Any) -> None:
    give_up = time.perf_counter() + 9
    while not true():
        assert time.perf_counter() < give_up
        time.sleep(0.001)


def test_who_has_begun_is_waited_for_and_others_do_not_begin_later() -> None:
    threads, shared = Team(), np.zeros(2, np.int64)
    threads.do([], 3)
    numbers = threads._shared
    wait_until(lambda: numbers[SLEEPING] == 2)
    caller = threading.Thread(target=threads.do, args=[[(entry(hold), shared.ctypes.data)], 2])
    caller.start()
    wait_until(lambda: shared[0] == 1)
    time.sleep(0.01)
    assert caller.is_alive()
    shared[1] = 1
    caller.join(9)
    assert not caller.is_alive()
    assert numbers[TICKETS] < 0, "nobody may begin now"
    assert numbers[LEFT] == 1
    numbers[WAITING] = 1  # as where the caller has slept
    assert numbers[CALLS] == 2
    threads.do([], 2)
    assert numbers[WAITING] == 0, "nobody sleeps now, and a wake-up takes time"
    threads.end()


def test_as_many_threads_as_torch_computes_with_but_no_more_than_are_asked_for() -> None:
    before, given = torch.get_num_threads(), list[int]()
    lead = Team.do
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Team, "do", lambda self, works, threads: given.append(threads) or lead(self, works, threads))
        try:
            torch.set_num_threads(3)
            for most in (1, 2, 8):
                do_together([], most)
        finally:
            torch.set_num_threads(before)
    assert given == [1, 2, 3]


def test_a_child_that_was_forked_has_a_team_of_its_own() -> None:
    team().do([], 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that of forking beside threads
        child = os.fork()
    if not child:
        signal.alarm(9)
        try:
            counts = np.zeros(PIECES, np.int64)
            team().do([work(counts)], 2)
            os._exit(0 if (counts == 1).all() and all(one.is_alive() for one in team()._threads) else 1)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_compiled_by_an_import_as_other_cpus_lack_an_instruction() -> None:
    spec = importlib.util.find_spec(cpu_waiting.__name__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not any(one.signatures for one in (module.do, module.serve, module.lead, module.end))


def test_a_process_ends_when_its_threads_have() -> None:
    source = """
import atexit, threading
atexit.register(lambda: print([one.name for one in threading.enumerate() if one.name.startswith("cpu-team")]))
from pipeline.formats.cpu_team import team
team().do([], 3)
"""
    given = [sys.executable, "-c", source]
    ended = subprocess.run(given, cwd=Path(__file__).parents[2], check=True, timeout=60, capture_output=True, text=True)
    assert ended.stdout == "[]\n"
