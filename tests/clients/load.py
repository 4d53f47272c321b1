"""Many clients at once against a server in this process: fairness, what leaving clients leave behind, overhead.

    python tests/clients/load.py company                 200 clients, 30 % of which leave in the midst of their answer
    python tests/clients/load.py overhead --model DIR    tokens/s through HTTP and in process, in turns

Clients run in a process of their own (load_clients.py). Ends with 1 where a limit is exceeded.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline import Model
from pipeline.server.options import ServerOptions
from pipeline.server.process import BACKLOG, Server, open_to_stay
from pipeline.server.served import ServedModel
from pipeline.system.event_loop import run_async
from pipeline.system.hub_cache import BUNDLED

CLIENTS = 200
LEAVING = 0.3
TOKENS = (20, 60)
MOST_UNFAIR = 1.5
FIRST_BYTE_SECONDS = 1.0
LEAST_SHARE = 0.97
SAMPLE_SECONDS = 0.02


def main() -> int:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("company", "overhead"))
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="so that weights move")
    parser.add_argument("--requests", type=int, default=[16], nargs="+", metavar="N", help="of overhead, at once")
    parser.add_argument("--tokens", type=int, default=48, metavar="N", help="of each answer of overhead")
    parser.add_argument("--turns", type=int, default=4, metavar="N", help="of overhead, each with and without HTTP")
    options = parser.parse_args()
    return int(run_async({"company": company, "overhead": overhead}[options.what](options)))


@contextlib.asynccontextmanager
async def serving(options: argparse.Namespace, **settings: Any) -> AsyncIterator[tuple[Model, int]]:
    """The open model, and the port that it is served on."""
    settings |= {"device": options.device} | ({"gpu_memory": options.gpu_memory} if options.gpu_memory else {})
    server_options = ServerOptions(model=options.model, settings=settings, port=0)
    served = ServedModel(server_options)
    await open_to_stay(served)
    server = Server(served)
    listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield served.model, listening.getsockname()[1]
    finally:
        server.should_exit = True
        await running
        await served.aclose()


async def answers_to(port: int, orders: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
    """What the clients in a process of their own have got, and the CPU time of this thread meanwhile."""
    command = (sys.executable, str(Path(__file__).with_name("load_clients.py")))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    if process.stdin is None or process.stdout is None:
        raise SystemExit("the clients have no pipes")
    process.stdin.write(json.dumps({"port": port, "orders": orders}).encode() + b"\n")
    await process.stdout.readline()
    began = time.thread_time()
    out, _ = await process.communicate(b"go\n")
    seconds = time.thread_time() - began
    if process.returncode != 0:
        raise SystemExit(f"the clients failed: {process.returncode}")
    return list(json.loads(out)), seconds


def prompt(number: int) -> str:
    """Prompts of unlike lengths."""
    return f"def function_{number}(" + ", ".join(f"x{one}" for one in range(number % 40)) + "):\n"


def held(model: Model) -> dict[str, int]:
    """What a request may leave behind."""
    gc.collect()
    blocks = model.statistics().kv_blocks.used
    requests = model.statistics().requests
    return {
        "blocks": blocks,
        "requests": requests.running + requests.waiting,
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


async def company(options: argparse.Namespace) -> int:
    """Many clients, of which some leave: the others' texts as alone, nothing left behind, and fair shares."""
    draws = random.Random(0)
    orders = []
    for number in range(CLIENTS):
        tokens = draws.randint(*TOKENS)
        leaves = draws.randrange(1, tokens) if draws.random() < LEAVING else -1
        orders.append({"body": {"prompt": prompt(number), "max_tokens": tokens}, "leaves_after": leaves})
    async with serving(options, max_requests=64) as (model, port):
        await answers_to(port, orders[:2])
        before = held(model)
        passes: list[tuple[float, int]] = []
        watching = asyncio.create_task(watch(model, passes))
        answers, _ = await answers_to(port, orders)
        watching.cancel()
        await asyncio.sleep(0.5)
        after = held(model)
        wrong = 0
        for order, answer in zip(orders, answers, strict=True):
            body = order["body"]
            alone = await model.generate(
                body["prompt"], max_new_tokens=body["max_tokens"], temperature=0, ignore_eos=True
            )
            whole = order["leaves_after"] < 0
            wrong += answer["text"] != alone.text if whole else not alone.text.startswith(answer["text"])
    rates = [per_pass(answer["times"], passes) for answer in answers if len(answer["times"]) > 10]
    unfair = max(rates) / statistics.median(rates)
    slowest = max(answer["first_byte"] - answer["asked"] for answer in answers)
    leaving = sum(order["leaves_after"] > 0 for order in orders)
    print(f"{CLIENTS} clients, of which {leaving} leave; texts that are not as alone: {wrong}")
    print(f"before {before}\nafter  {after}")
    middle, least = statistics.median(rates), min(rates)
    print(f"tokens of a request per pass: median {middle:.3f}, from {least:.3f} to {max(rates):.3f}")
    print(f"largest / median {unfair:.3f} (at most {MOST_UNFAIR}), median / smallest {middle / least:.3f}")
    print(f"longest time to the first byte {slowest:.2f} s (at most {FIRST_BYTE_SECONDS:g})")
    spare = {name: after[name] - before[name] for name in before}
    bad = wrong or any(value > 0 for value in spare.values()) or unfair > MOST_UNFAIR or slowest > FIRST_BYTE_SECONDS
    return 1 if bad else 0


async def watch(model: Model, passes: list[tuple[float, int]]) -> None:
    """Note how many passes there were, again and again."""
    while True:
        passes.append((time.monotonic(), model.statistics().passes))
        await asyncio.sleep(SAMPLE_SECONDS)


def per_pass(times: list[float], passes: list[tuple[float, int]]) -> float:
    """Tokens of a request, behind its first, over the passes meanwhile."""
    first = next((count for when, count in reversed(passes) if when <= times[0]), passes[0][1])
    last = next((count for when, count in passes if when >= times[-1]), passes[-1][1])
    return (len(times) - 1) / max(1, last - first)


async def overhead(options: argparse.Namespace) -> int:
    """Tokens/s of the same requests through HTTP and in process, in turns, for each number of requests."""
    async with serving(options, max_requests=max(16, *options.requests), share_prefixes=False) as (model, port):
        return max([await overhead_of(count, model, port, options) for count in options.requests])


async def overhead_of(count: int, model: Model, port: int, options: argparse.Namespace) -> int:
    """The same for so many requests at once. Returns 1 where their share is too small."""
    orders = [
        # Token ids: a model made for measuring has no tokenizer.
        {"body": {"prompt": [number + 3, 5, 7], "max_tokens": options.tokens}, "leaves_after": -1}
        for number in range(count)
    ]
    shares, shares_behind, rates, costs = [], [], [], []
    for turn in range(options.turns + 1):
        began = time.thread_time()
        here, behind_here = await in_process(model, orders)
        costs_here = time.thread_time() - began
        passes = model.statistics().passes
        answers, costs_there = await answers_to(port, orders)
        passes = model.statistics().passes - passes
        begun, ended = min(answer["asked"] for answer in answers), max(answer["times"][-1] for answer in answers)
        there = ended - begun
        behind_there = ended - max(answer["times"][0] for answer in answers)
        if turn:  # the first is warm-up
            shares.append(here / there)
            shares_behind.append(behind_here / behind_there)
            costs.append((costs_here, costs_there))
            rates.append((count * options.tokens / here, count * options.tokens / there))
    middle = statistics.median(shares)
    one, other = (statistics.median(some) for some in zip(*rates, strict=True))
    print(f"{count} requests of {options.tokens} tokens, {passes} passes through HTTP, {options.turns} turns")
    print(f"tokens/s: in process {one:.1f}, through HTTP {other:.1f}")
    one, other = (statistics.median(some) / count / options.tokens for some in zip(*costs, strict=True))
    print(
        f"CPU time of the event loop's thread, a token: in process {one * 1e6:.0f} us, through HTTP {other * 1e6:.0f}"
    )
    low, high = min(shares_behind), max(shares_behind)
    print(f"behind all first tokens: {statistics.median(shares_behind):.3f} ({low:.3f} to {high:.3f})")
    print(f"HTTP / in process: {middle:.3f} ({min(shares):.3f} to {max(shares):.3f}), at least {LEAST_SHARE} wanted")
    return int(middle < LEAST_SHARE)


async def in_process(model: Model, orders: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The seconds for all, streamed, as a program of one's own would do it; and those behind all first tokens."""

    async def one(body: dict[str, Any]) -> float:
        ids, tokens = body["prompt"], body["max_tokens"]
        first = 0.0
        async for _ in model.stream(ids, max_new_tokens=tokens, temperature=0, ignore_eos=True):
            first = first or time.perf_counter()
        return first

    begun = time.perf_counter()
    firsts = await asyncio.gather(*(one(order["body"]) for order in orders))
    ended = time.perf_counter()
    return ended - begun, ended - max(firsts)


if __name__ == "__main__":
    sys.exit(main())
