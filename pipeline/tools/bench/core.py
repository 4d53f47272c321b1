"""`penstock bench core`: what the core itself costs, and how near a simulated pass comes to its ideal."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from actors.core.channel import Receiver, Sender, open_channel
from actors.core.errors import ChannelClosed
from actors.core.trace import Trace
from pipeline.tools.simulation.loop import VirtualTimeLoop, run_virtual
from pipeline.tools.simulation.sim_line import sim_line
from pipeline.tools.simulation.timings import LayerTimings

MESSAGES = 50_000
LAYERS, PASSES = 80, 20
QUEUE = 4
IDEAL_PASS_SECONDS = LAYERS * 0.2
"""80 layers whose transfers (2 x 100 ms) and computations (80 + 120 ms) both take 200 ms."""

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class _InstantDisk(LayerTimings):
    """A hop of its own, so that the line has a budget in both places, but one that takes no time."""

    one_link = False


@dataclass(frozen=True, slots=True)
class CoreReport:
    """Medians of `rounds` rounds, by event loop, and the steady pass of a simulated 80-layer model.

    A hop is one send and one receive. The line is all five actors on a simulated device whose operations take no time,
    so that its microseconds per group are what Python costs; `recorded` with every span and count kept.
    """

    rounds: int
    hop_messages_per_second: dict[str, float]
    line_group_microseconds: dict[str, float]
    recorded_group_microseconds: dict[str, float]
    simulated_pass_seconds: float
    ideal_pass_seconds: float
    real_seconds_per_simulated_pass: float


def bench_core(rounds: int) -> CoreReport:
    """Measure hops and whole lines on every loop in turn, `rounds` times."""
    loops = _loops()
    hops, groups, recorded = ({name: list[float]() for name in loops} for _ in range(3))
    simulated = []
    for _ in range(rounds):
        for name, factory in loops.items():
            with asyncio.Runner(loop_factory=factory) as runner:
                hops[name].append(runner.run(_hops_per_second()))
                groups[name].append(runner.run(_group_microseconds(Trace(recording=False))))
                recorded[name].append(runner.run(_group_microseconds(Trace())))
        started = time.perf_counter()
        pass_seconds = run_virtual(_simulated_pass_seconds())
        simulated.append((time.perf_counter() - started) / PASSES)
    hop, group, with_spans = ({name: median(each) for name, each in one.items()} for one in (hops, groups, recorded))
    real_seconds = median(simulated)
    return CoreReport(rounds, hop, group, with_spans, pass_seconds, IDEAL_PASS_SECONDS, real_seconds)


def _loops() -> dict[str, LoopFactory]:
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop, "virtual": VirtualTimeLoop}
    try:
        import uvloop

        loops["uvloop"] = uvloop.new_event_loop
    except ImportError:
        pass
    return loops


async def _hops_per_second() -> float:
    ends: tuple[Sender[int], Receiver[int]] = open_channel("reader", QUEUE, time.perf_counter)
    sender, receiver = ends

    async def send_all() -> None:
        for number in range(MESSAGES):
            await sender.send(number)
        sender.close()

    started = time.perf_counter()
    sending = asyncio.create_task(send_all())
    received = 0
    try:
        while True:
            await receiver.receive()
            received += 1
    except ChannelClosed:
        await sending
    return received / (time.perf_counter() - started)


async def _group_microseconds(trace: Trace) -> float:
    instant = _InstantDisk(layers=LAYERS, attn=0.0, ffn=0.0, attn_io=0.0, ffn_io=0.0)
    sim = sim_line(instant, passes=PASSES, queue=QUEUE, trace=trace)
    started = time.perf_counter()
    await sim.line.run()
    return (time.perf_counter() - started) / (2 * LAYERS * PASSES) * 1e6


async def _simulated_pass_seconds() -> float:
    balanced = _InstantDisk(layers=LAYERS, attn=0.08, ffn=0.12, attn_io=0.1, ffn_io=0.1)
    sim = sim_line(balanced, passes=PASSES, queue=QUEUE)
    await sim.line.run()
    return (sim.program.passes[-1].began - sim.program.passes[1].began) / (PASSES - 2)
