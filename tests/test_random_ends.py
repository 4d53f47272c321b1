"""A stage, a policy, a read or a task ends oddly, at a random moment: nobody hangs, and nobody is lied to.

Some dozens of runs by default. Many, with a table of what came of which end:

    PENSTOCK_RANDOM_RUNS=10000 python -m pytest -s tests/test_random_ends.py

`PENSTOCK_RANDOM_SEED` begins elsewhere.
"""

import asyncio
import functools
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import EVERYTHING
from support.kv_places import settings_with_room
from support.odd_ends import WAYS, End, OddPolicy, OddStage, odd_reads, stop_tasks
from support.small_checkpoints import write_small_checkpoint

from pipeline import Model, PenstockError

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
RUNS = int(os.environ.get("PENSTOCK_RANDOM_RUNS", "120" if EVERYTHING else "80"))
SEED = int(os.environ.get("PENSTOCK_RANDOM_SEED", "0"))
MOST_SECONDS = 1.0
"""From the end to the answer of the last caller. On a machine that does much else, one of three attempts must do."""
PATIENCE_SECONDS = 0.15
"""After which a model whose line stands still is closed."""
CLOSING = {"never ends", "thread hangs", "supervisor cancelled", "all cancelled", "closed loop"}
RECOVERED = {("read", way) for way in ("error", "base exception", "cancels itself", "stop iteration")}
ENDS = [(place, way) for place, ways in WAYS.items() for way in ways]
SETTINGS: dict[str, Any] = {
    "context_tokens": 48,
    "kv_tokens": 96,
    "max_tokens_per_pass": 24,
    "max_requests": 2,
    "residency": False,
    "reader_lanes": 1,
    "chunk_bytes": 1 << 20,
}
AFTER = ("prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader")
Tokens = tuple[int, ...]
Caller = Callable[[Model], Coroutine[Any, Any, Tokens]]


def checkpoint(folder: Path, layers: int) -> Path:
    write_small_checkpoint(folder / f"{layers}", "llama-3-8b", torch.float32, layers=layers)
    return folder / f"{layers}"


def sampled(prompt: list[int], count: int, **arguments: Any) -> Caller:
    async def caller(model: Model) -> Tokens:
        outputs = await model.generate(prompt, max_new_tokens=count, ignore_eos=True, n=2, **arguments)
        return tuple(token_id for output in outputs for token_id in output.token_ids)

    return caller


def streamed(prompt: list[int], count: int, **arguments: Any) -> Caller:
    async def caller(model: Model) -> Tokens:
        chunks = model.stream(prompt, max_new_tokens=count, ignore_eos=True, **arguments)
        return tuple([token_id async for chunk in chunks for token_id in chunk.token_ids])

    return caller


CALLERS: list[Caller] = [
    sampled([5, 9, 1], 2),
    sampled([7] * 20, 2, temperature=1.0, seed=5, repetition_penalty=1.2),
    streamed([8, 2], 5),
    streamed(list(range(30)), 3, temperature=1.0, seed=9),
    streamed([4, 4, 4], 2, priority=-1, cache_scope="a"),
]


class Bench:
    """One kind of model, opened anew when a run has closed it."""

    def __init__(self, checkpoint: Path, settings: dict[str, Any], has_policy: bool) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self.reads = End()
        self.stages = [End() for _ in AFTER]
        self.policy = End() if has_policy else None
        self.model: Model | None = None
        self.expected: list[Tokens] = []

    async def open(self) -> Model:
        if self.model is None:
            ends = zip(AFTER, self.stages, strict=True)
            insert = {after: [functools.partial(OddStage, f"odd {after}", end)] for after, end in ends}
            settings = {**self._settings, "insert": insert}
            if self.policy is not None:
                settings["policy"] = OddPolicy(self.policy)
            self.model = await Model.open(self._checkpoint, **settings)
            odd_reads(self.model, self.reads)
            self.expected = self.expected or [await caller(self.model) for caller in CALLERS]
        return self.model

    async def close(self) -> None:
        """Give the model back, however its threads hang."""
        if self.model is not None:
            self.reads.gate.set()
            await self.model.aclose()
            self.model, self.reads.gate = None, threading.Event()


class Runs:
    """Runs one after the other, and what came of them."""

    def __init__(self, benches: list[Bench]) -> None:
        self._benches = benches
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.seconds: list[tuple[float, str]] = []

    async def run(self, draw: random.Random) -> None:
        bench = draw.choice(self._benches)
        place, way = draw.choice([one for one in ENDS if one[0] != "policy" or bench.policy is not None])
        if place == "loop":
            await self._closed_loop(bench, draw)
            return
        model = await bench.open()
        chosen = [draw.randrange(len(CALLERS)) for _ in range(draw.randint(1, 4))]
        calls = [asyncio.create_task(CALLERS[index](model)) for index in chosen]
        for _ in range(draw.choice([0, 3, 10, 30, 90, 200])):
            await asyncio.sleep(0)
        end = {"stage": draw.choice(bench.stages), "read": bench.reads, "policy": bench.policy}.get(place) or End()
        end.arm(way)
        for _ in range((1 + (way == "twice")) * (place == "task")):
            stop_tasks(model, end, way, draw.random())
            await asyncio.sleep(draw.random() * 0.002)
        await asyncio.wait(calls, timeout=PATIENCE_SECONDS if way in CLOSING else 10)
        reached = end.fired_at is not None
        if way in CLOSING and (reached or not all(call.done() for call in calls)):
            closing = asyncio.create_task(model.aclose())
            started = time.perf_counter()
            await asyncio.wait(calls, timeout=10)
            self._took(started, f"{place} {way}, then closed")
            self._check([bench.expected[index] for index in chosen], calls, place, way, reached)
            with pytest.raises(PenstockError):
                await CALLERS[4](model)
            bench.reads.gate.set()
            await closing
            await bench.close()
        else:
            self._took(end.fired_at or time.perf_counter(), f"{place} {way}")
            self._check([bench.expected[index] for index in chosen], calls, place, way, reached)
            end.left = 0
            for _ in range(10):  # what has ended just now is told before the next call comes
                await asyncio.sleep(0)
            assert await CALLERS[4](model) == bench.expected[4], (place, way)
        end.left = 0

    def _check(
        self, expected: list[Tokens], calls: "list[asyncio.Task[Tokens]]", place: str, way: str, reached: bool
    ) -> None:
        assert all(call.done() for call in calls), f"{place} {way}: somebody hangs"
        errors = [error for call in calls if (error := call.exception()) is not None]
        assert len({id(error) for error in errors}) == len(errors), "to each one of its own"
        assert all(isinstance(error, PenstockError) for error in errors), (place, way, errors)
        for tokens, call in zip(expected, calls, strict=True):
            assert call.exception() is not None or call.result() == tokens, (place, way)
        if way == "slow" or (place, way) in RECOVERED:
            assert not errors, (place, way, errors)
        kinds = sorted({type(error).__name__ for error in errors} | ({"tokens"} if len(errors) < len(calls) else set()))
        self.outcomes[place, way, " and ".join(kinds) + ("" if reached else ", not reached")] += 1

    async def _closed_loop(self, bench: Bench, draw: random.Random) -> None:
        """A loop that ends while its model serves; the model is closed from this one."""
        await bench.close()
        steps = draw.choice([0, 10, 50, 200])

        async def main() -> "tuple[Model, list[asyncio.Task[Tokens]]]":
            model = await bench.open()
            calls = [asyncio.create_task(CALLERS[index](model)) for index in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            return model, calls

        model, calls = await asyncio.to_thread(asyncio.run, main())
        started = time.perf_counter()
        assert all(call.done() for call in calls)
        with pytest.raises(PenstockError):
            await model.generate([5], max_new_tokens=1)
        await bench.close()
        self._took(started, "closed loop")
        self.outcomes["loop", "closed loop", "cancelled with the loop, then closed"] += 1

    def _took(self, started: float, what: str) -> None:
        self.seconds.append((time.perf_counter() - started, what))


async def test_nobody_hangs_and_nobody_is_lied_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL, "penstock")
    small, larger, copying = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4), {**SETTINGS, "device": "cpu-copy"}
    moving = settings_with_room(larger, tmp_path, device_layers=3, host_layers=2, **copying)
    benches = [
        Bench(small, {**SETTINGS, "device": "cpu"}, has_policy=False),
        Bench(small, copying, has_policy=True),
        Bench(larger, moving, has_policy=False),
        Bench(larger, {**SETTINGS, "devices": ["cpu-copy"] * 2}, has_policy=True),
    ]
    monkeypatch.setattr("pipeline.generation.drawn_sections.HOP_SECONDS", 0.0)  # layers are dealt in turn
    runs = Runs(benches)
    for seed in range(SEED, SEED + RUNS // 2):  # on two loops
        try:
            for _ in range(3):
                await runs.run(random.Random(seed))
                if runs.seconds[-1][0] < MOST_SECONDS:
                    break
            else:
                pytest.fail(f"took {runs.seconds[-3:]}")
        except BaseException as error:
            error.add_note(f"PENSTOCK_RANDOM_SEED={seed}")
            raise
    for bench in benches:
        await bench.close()
    for (place, way, outcome), count in sorted(runs.outcomes.items()):
        print(f"{place:8} {way:22} {outcome:50} {count:6}")
    slow = [one for one in runs.seconds if one[0] >= MOST_SECONDS]
    print(f"{len(runs.seconds)} runs, longest wait {max(runs.seconds)}; {len(slow)} took a second and were run again")
