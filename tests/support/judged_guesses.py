"""What look-ahead costs and saves, and how often the next router is right, in turns: without, with, and auto.

    python tests/support/judged_guesses.py CHECKPOINT --slots HOST,DEVICE [--texts held_out.json] [--requests 8]

The texts are those of `trained_mixture.py`; without them prompts are a few arbitrary tokens. One model answers groups
of so many prompts at once, and the next group in the next way, until each was answered in all. Only passes in which
all requests decode count. Ends with the state of the store when a group is not answered in time.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from support.recorded_mixture import PROMPT_TOKENS, SAMPLED, prompts_of

from actors.core.message import READY
from pipeline import Model
from pipeline.engine.expert_room import KIND
from pipeline.generation.look_ahead import LookAhead

FIRST = 8
"""Tokens of an answer that do not count: a GPU records its launches meanwhile."""
LONGEST_SECONDS = 45.0
"""A group that takes longer is taken to stand still."""
MOST_CHOSEN = 8
"""A pass that guesses more is one of a prompt."""
WAYS: dict[str, bool | str] = {"without": False, "with": True, "auto": "auto"}
BARE = 96
"""The experts that are read at once to see how fast the disk is."""


@dataclass
class Run:
    """One group's answer: seconds of passes; tokens, bytes wanted and read in them; what became of guesses."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    wanted: int = 0
    read: int = 0
    hints: dict[str, int] = field(default_factory=dict)
    said: list[list[int]] = field(default_factory=list)


async def answer(model: Model, prompts: Sequence[Sequence[int]], tokens: int, sampled: dict[str, Any]) -> Run:
    """Let a group of prompts be answered at once."""
    run, chunks = Run(said=[[] for _ in prompts]), list[tuple[float, int, int, int, int]]()
    before = asdict(_experts(model).hints)

    async def one(index: int) -> None:
        stream = model.stream([*prompts[index]], max_new_tokens=tokens, seed=index, **sampled)
        async for chunk in stream:
            run.said[index] += chunk.token_ids
            now, read = time.perf_counter(), model.runtime.source.bytes_read
            chunks.append((now, index, len(run.said[index]), _experts(model).bytes_read, read))

    await asyncio.gather(*map(one, range(len(prompts))))
    begins = max(at for at, _, count, *_ in chunks if count == FIRST)
    ends = min(at for at, _, count, *_ in chunks if count == tokens)
    counted = [each for each in chunks if begins <= each[0] <= ends]
    times = [at for at, index, *_ in counted if index == 0]
    run.seconds = [later - earlier for earlier, later in itertools.pairwise(times)]
    run.tokens = len(counted) - 1
    run.wanted, run.read = counted[-1][3] - counted[0][3], counted[-1][4] - counted[0][4]
    run.hints = {name: count - before[name] for name, count in asdict(_experts(model).hints).items()}
    return run


def _experts(model: Model) -> Any:
    said = model.statistics().experts
    assert said is not None
    return said


async def in_time(model: Model, call: Any) -> Any:
    """What a call gives; the state of the store, and the end of the process, where it gives nothing in time."""
    task = asyncio.create_task(call)
    if not (await asyncio.wait([task], timeout=LONGEST_SECONDS))[0]:
        store = model.runtime.expert_line.store  # type: ignore[union-attr]
        print("STANDS STILL", {key: value for key, value in vars(store).items() if key != "_places"})
        for owner in (store._guesses, store._hints, *store._places):
            print(vars(owner))
        for sent in store._guesses._sent.values():
            print(vars(sent))
        for line in model.runtime.lines:
            print(line.statistics())
        for other in asyncio.all_tasks():
            other.print_stack(limit=3, file=sys.stdout)
        sys.stdout.flush()
        os._exit(3)
    return task.result()


async def bare(model: Model) -> float:
    """The rate of reading many experts at once, bytes per second."""
    line = model.runtime.expert_line
    assert line is not None
    budget, catalog = line.budgets[0], line.room.catalog
    keys = random.Random(time.time()).sample(catalog.order, min(BARE, len(catalog.order)))

    async def read(key: Any) -> None:
        slot = await budget.acquire(KIND)
        try:
            await line.source.read_into(key, slot.buffer)
        finally:
            slot.release(after=READY)

    started = time.perf_counter()
    await asyncio.gather(*map(read, keys))
    return len(keys) * catalog.needed_bytes / line.room.count / (time.perf_counter() - started)


def told(name: str, runs: Sequence[Run], requests: int) -> str:
    """The figures of one way."""
    seconds, tokens = [one for run in runs for one in run.seconds], sum(run.tokens for run in runs)
    hints = {name: sum(run.hints[name] for run in runs) for name in runs[0].hints}
    wanted, read = (sum(getattr(run, what) for run in runs) / tokens / 1e6 for what in ("wanted", "read"))
    return (
        f"  {name:8} {len(seconds)} passes of mean {1000 * fmean(seconds):.2f} median {1000 * median(seconds):.2f} ms, "
        f"{requests / fmean(seconds):.1f} tokens/s; per token {wanted:.3f} MB wanted, {read:.3f} read; {hints}"
    )


async def judge(model: Model, groups: Sequence[Sequence[Sequence[int]]], options: argparse.Namespace) -> None:
    """Answer all groups in all ways, in turns, and print what came of it."""
    half, line = model.runtime.section.expert_half, model.runtime.expert_line
    assert half is not None
    assert line is not None
    sampled = SAMPLED if options.texts else {**SAMPLED, "temperature": 2.0}
    ways = {name: LookAhead.of(line, setting) for name, setting in WAYS.items()}
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    rates = list[float]()
    for name in ("without", "with"):
        half._ahead = ways[name]
        await in_time(model, answer(model, groups[-1], FIRST + 2, sampled))
    for turn in range(len(ways) * options.rounds):
        rates.append(await bare(model))
        for index, group in enumerate(groups[:-1]):
            name = [*ways][(turn + index) % len(ways)]
            half._ahead = ways[name]
            runs[name].append(await in_time(model, answer(model, group, options.tokens, sampled)))
    rates.append(await bare(model))
    print(f"{options.requests} at once, slots {options.slots}, kept in the end {line.store.kept()}: all answers ended")
    for name, each in runs.items():
        print(told(name, each, options.requests))
        pairs = zip(_by_group(each), _by_group(runs["without"]), strict=True)
        compared = sorted(fmean(one.seconds) / fmean(other.seconds) for one, other in pairs)
        same = {str(run.said) for run in each} == {str(run.said) for run in runs["without"]}
        by_group = " ".join(f"{one:.2f}" for one in compared)
        print(f"           to without, by group: {by_group}; median {median(compared):.3f}; the same tokens: {same}")
    gate = ways["auto"]._gate
    decided = gate and {f"{1 << size >> 1} rows or more": pays for size, (pays, _) in gate._decided.items()}
    print(f"  auto decided {decided}; bare reads {' '.join(f'{one / 1e9:.2f}' for one in rates)} GB/s", flush=True)
    if options.requests == 1 and options.precision:
        half._ahead, counts = ways["with"], right_guesses(line.store)
        for group in groups[:-1]:
            await in_time(model, answer(model, group, options.tokens, sampled))
        for what, (count, hits) in sorted(counts.items()):
            print(f"  right {what}: {hits / max(1, count):.3f} of {count}", flush=True)


def _by_group(runs: Sequence[Run]) -> list[Run]:
    """In an order that both ways share: by what was said."""
    return sorted(runs, key=lambda run: str(run.said))


def right_guesses(store: Any) -> dict[str, tuple[int, int]]:
    """Counts, by what was guessed, how many guesses of one row there were and how many were right."""
    counts: dict[str, tuple[int, int]] = {}
    guessed: dict[int, list[int]] = {}
    guess, want, places = store.guess, store.want, store._places

    def note(what: str, right: bool) -> None:
        count, hits = counts.get(what, (0, 0))
        counts[what] = (count + 1, hits + right)

    def watched_guess(layer: int, experts: Sequence[int]) -> None:
        guessed[layer] = list(experts)
        guess(layer, experts)

    def watched_want(layer: int, experts: Sequence[int], **how: Any) -> int:
        found = guessed.pop(layer, None)
        if found is not None and len(experts) == len(found) <= MOST_CHOSEN:
            missing = 0
            for rank, one in enumerate(found):
                note("all", one in experts)
                note(f"all, layer {layer:2}", one in experts)
                note(f"all, rank {rank}", one in experts)
                if not any((layer, one) in place.cache for place in places):
                    missing += 1
                    note("not in memory", one in experts)
                    note(f"not in memory, layer {layer:2}", one in experts)
                    note(f"not in memory, {missing}. of its layer", one in experts)
            for one in experts:
                if not any((layer, one) in place.cache for place in places):
                    note("that must be read was guessed", one in found)
        result: int = want(layer, experts, **how)
        return result

    store.guess, store.want = watched_guess, watched_want
    return counts


async def main(arguments: Sequence[str] | None = None) -> None:
    """Judge one setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slots", required=True, help="for experts in host memory and on the device; one for a CPU")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--precision", action="store_true", help="then say how often guesses are right, by layer")
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1, help="each answers each group in all ways")
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args(arguments)
    *host, last = map(int, options.slots.split(","))
    settings = {"device": options.device, "gpu_experts": last, **({"host_experts": host[0]} if host else {})}
    room = PROMPT_TOKENS + options.tokens + 8
    async with Model.open(
        options.folder, lookahead=True, checksums=False, context_tokens=room, max_requests=options.requests, **settings
    ) as model:
        count = options.requests * (options.groups + 1)
        if options.texts:
            texts = {topic: each for topic, each in json.loads(options.texts.read_text()).items() if each}
            prompts = prompts_of(model, texts, count, None)
        else:
            prompts = [[3, 5, 7 + index, 11] for index in range(count)]
        groups = [prompts[begin : begin + options.requests] for begin in range(0, count, options.requests)]
        await judge(model, groups, options)


if __name__ == "__main__":
    asyncio.run(main())
