"""How the threads of a `cpu_team` wait for work, and do it. Compiled, so that they hold no interpreter lock.

Nothing is compiled where this is imported: LLVM ends the process where a CPU lacks an instruction.
"""

import functools

from numba import njit, types

from pipeline.formats import cpu_instructions as cpu

CLAIMED, FIRST, WORDS = 0, 8, 32
"""Of the words that a kernel is given: the one that counts what is claimed, in a cache line of its own; where those
that the caller gives begin; and how many there are."""
SHARED = 72
CALLS, SLEEPING, TICKETS, LEFT, WAITING, ENDS, WORKS, COUNT, LED = range(0, SHARED, 8)
"""What the threads of a team share, each in a cache line of its own: how often work came; threads that sleep; how many
more may take part; how many have done so; whether the caller sleeps; whether all is over; the works, and how many;
whether a caller leads them."""
CLOSED = -(1 << 40)
"""Tickets that no thread makes a number above 0 of."""
PATIENCE = 2000
"""Pauses for which the caller waits for a thread before it sleeps: about 30 us."""
SIGNATURE = (types.int64,)
"""Of kernels that are work: the address of their words."""
TEAM, NUMBER = types.int64[::1], types.int64


@njit(nogil=True, cache=True)
def do(address, count):
    """Do the works whose words lie there."""
    for work in range(count):
        words = address + work * WORDS * 8
        cpu.call(cpu.word_at(words + FIRST * 8), words)


@njit(nogil=True, cache=True)
def serve(team):
    """What a thread of a team does until that ends."""
    seen = cpu.peek(team, CALLS)
    while cpu.peek(team, ENDS) == 0:
        if cpu.claim(team, TICKETS, -1) > 0:
            do(cpu.peek(team, WORKS), cpu.peek(team, COUNT))
            cpu.claim(team, LEFT, 1)
            if cpu.peek(team, WAITING):
                cpu.wake(team, LEFT, 1)
        if cpu.peek(team, CALLS) == seen:
            cpu.claim(team, SLEEPING, 1)
            cpu.sleep_while(team, CALLS, seen)
            cpu.claim(team, SLEEPING, -1)
        seen = cpu.peek(team, CALLS)


@njit(nogil=True, cache=True)
def lead(team, threads, address, count):
    """Let so many threads of the team do the works, with this one; returns when all is done, and none looks at them.

    This one does them alone where another caller leads the team.
    """
    if cpu.swap(team, LED, 1):
        do(address, count)
        return
    cpu.swap(team, WORKS, address)
    cpu.swap(team, COUNT, count)
    cpu.swap(team, LEFT, 0)
    cpu.swap(team, WAITING, 0)
    cpu.swap(team, TICKETS, threads)
    cpu.claim(team, CALLS, 1)
    if cpu.peek(team, SLEEPING) > 0:
        cpu.wake(team, CALLS, threads)
    do(address, count)
    patience = PATIENCE
    began, left = threads - max(cpu.swap(team, TICKETS, CLOSED), 0), cpu.peek(team, LEFT)
    while left < began:
        if patience > 0:
            patience -= 1
            cpu.pause()
        else:
            cpu.swap(team, WAITING, 1)
            cpu.sleep_while(team, LEFT, left)
        left = cpu.peek(team, LEFT)
    cpu.swap(team, LED, 0)


@njit(nogil=True, cache=True)
def end(team):
    """Let the threads of a team end."""
    cpu.swap(team, ENDS, 1)
    cpu.claim(team, CALLS, 1)
    cpu.wake(team, CALLS, 1 << 30)


@functools.cache
def make_ready() -> None:
    """Compile what is above, or load it from numba's cache; at once, as later it would delay work and other threads.

    Once only: in a child that was forked while another thread compiled, numba would wait for that thread for ever.
    """
    do.compile((NUMBER, NUMBER))
    serve.compile((TEAM,))
    lead.compile((TEAM, NUMBER, NUMBER, NUMBER))
    end.compile((TEAM,))
