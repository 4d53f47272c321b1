"""What replicas on Ray Serve cost, what routing by the beginning of requests finds computed, and what kills do.

    PYTHONPATH=.:tests RAY_ADDRESS=local python tests/support/replica_figures.py [throughput] [routing] [kills]

`throughput` compares one process with one and two replicas, also by the CPU time that a token takes, which other
programs on the machine change less than rates; `routing` compares routers of Serve; `kills` ends a replica under load,
twenty times. The bundled model.
"""

import argparse
import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from random import Random

import httpx
from support.replica_servers import RUNNING, Replicas, client, cpu_seconds, one_process, replicas

from pipeline.replicas.application import ROUTER

ROUTERS = {
    "Serve's default": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
    "ConsistentHashRouter": ROUTER,
    "PrefixCacheAffinityRouter": "support.replica_routers:PrefixRouter",
}
REQUESTS, TOKENS, ROUNDS = (1, 16), 64, 5
CHATS, AT_ONCE, TURNS, REPLICAS = 24, 8, 5, (2, 4)
WORDS = ("the", "model", "reads", "a", "file", "and", "returns", "its", "lines", "where", "they", "differ")
KILLS, CLIENTS = 20, 12


async def stream(asking: httpx.AsyncClient, prompt: str) -> float:
    """The seconds to the first frame of an answer."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    began, first = time.perf_counter(), 0.0
    async with asking.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - began
    return first


async def throughput(it: Replicas, name: str) -> None:
    """Print tokens a second, milliseconds to the first frame and CPU time, by how many requests run at once."""
    async with client(it) as asking:
        await asyncio.gather(*(stream(asking, f"warm {number}") for number in range(8)))
        for requests in REQUESTS:
            rates, firsts, before = [], [], cpu_seconds(it)
            for turn in range(ROUNDS):
                began = time.perf_counter()
                prompts = [f"def function_{turn}_{number}(" for number in range(requests)]
                firsts += await asyncio.gather(*(stream(asking, prompt) for prompt in prompts))
                rates.append(requests * TOKENS / (time.perf_counter() - began))
            spent = {kind: seconds - before[kind] for kind, seconds in cpu_seconds(it).items()}
            tokens = ROUNDS * requests * TOKENS
            parts = ", ".join(f"{kind} {1000 * seconds / tokens:.2f}" for kind, seconds in spent.items() if seconds)
            print(
                f"{name:<12} {requests:>3} at once: {statistics.median(rates):6.1f} tokens/s ({min(rates):.1f} to "
                f"{max(rates):.1f}), first frame {1000 * statistics.median(firsts):4.0f} ms, CPU ms/token: {parts}",
                flush=True,
            )


async def routing(it: Replicas, name: str) -> None:
    """Print which share of the tokens of later turns of chats was found computed."""
    spent: Counter[str] = Counter()
    chosen: Counter[str] = Counter()

    async def chat(asking: httpx.AsyncClient, number: int) -> None:
        draw = Random(number)
        messages = [{"role": "user", "content": f"{number}: " + " ".join(draw.choices(WORDS, k=40))}]
        for turn in range(TURNS):
            answer = await asking.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 24})
            said = answer.json()
            chosen[answer.headers["x-replica"]] += 1
            if turn:
                spent["prompt"] += said["usage"]["prompt_tokens"]
                spent["cached"] += said["usage"]["prompt_tokens_details"]["cached_tokens"]
            messages.append(said["choices"][0]["message"])
            messages.append({"role": "user", "content": " ".join(draw.choices(WORDS, k=12))})

    async with client(it) as asking:
        for first in range(0, CHATS, AT_ONCE):
            await asyncio.gather(*(chat(asking, number) for number in range(first, first + AT_ONCE)))
    share = 100 * spent["cached"] / spent["prompt"]
    print(
        f"{name:<40} {spent['prompt']} tokens, {share:.1f} % computed; requests {sorted(chosen.values())}", flush=True
    )


async def kills(it: Replicas) -> None:
    """Print how requests ended that ran beside kills, and how long Serve took to have all replicas again."""
    ends: Counter[str] = Counter()
    back: list[float] = []
    longest = 0.0
    draw = Random(0)
    stop = asyncio.Event()

    async def ask(asking: httpx.AsyncClient, streamed: bool) -> None:
        nonlocal longest
        while not stop.is_set():
            body = {"prompt": f"def function_{draw.random()}(", "max_tokens": 100, "stream": streamed}
            began = time.perf_counter()
            try:
                answer = await asking.post("/v1/completions", json=body)
                failed = answer.status_code != 200 or '{"error"' in answer.text
                whole = not streamed or answer.text.endswith("data: [DONE]\n\n")
                ends[f"error, status {answer.status_code}" if failed else "whole" if whole else "cut off"] += 1
            except httpx.HTTPError as error:
                ends[type(error).__name__] += 1
            longest = max(longest, time.perf_counter() - began)

    async with client(it) as asking:
        asked = [asyncio.create_task(ask(asking, number % 2 == 0)) for number in range(CLIENTS)]
        for _ in range(KILLS):
            await asyncio.sleep(draw.uniform(0.5, 2.0))
            said, began = len(it.log.read_text()), time.perf_counter()
            os.kill(draw.choice(it.processes()), signal.SIGKILL)
            await asyncio.to_thread(it.await_line, RUNNING.format(2), said)
            back.append(time.perf_counter() - began)
        stop.set()
        await asyncio.gather(*asked)
    print(
        f"{KILLS} kills: {dict(ends)}; the longest request took {longest:.1f} s; both replicas were there again after "
        f"{min(back):.1f} to {max(back):.1f} s, in the median {statistics.median(back):.1f}",
        flush=True,
    )


def main() -> None:
    """Measure what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("throughput", "routing", "kills"))
    what = parser.parse_args().what
    if "throughput" in what:
        with one_process() as it:
            asyncio.run(throughput(it, "one process"))
        for count in (1, 2):
            with replicas(count, "--replica-cpus", "1") as it:
                asyncio.run(throughput(it, f"{count} replicas"))
    if "routing" in what:
        for count in REPLICAS:
            for name, router in ROUTERS.items():
                with replicas(count, router=router) as it:
                    asyncio.run(routing(it, f"{name}, {count} replicas"))
    if "kills" in what:
        with replicas(2) as it:
            asyncio.run(kills(it))


if __name__ == "__main__":
    main()
