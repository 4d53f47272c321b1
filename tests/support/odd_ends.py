"""Stages, policies, reads and tasks that end in odd ways, once, when they are told to."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.core.ports import Ask, Half, Waits
from pipeline import Message, Model, Slot, Stage
from pipeline.engine.policies import Policy, find_policy
from pipeline.reading.source import CheckpointSource
from pipeline.system.threads import outlast

SLOW_SECONDS = 0.02
WAYS: dict[str, tuple[str, ...]] = {
    "stage": (
        *("error", "twice", "base exception", "cancels itself", "stop iteration", "returns early", "wrong answer"),
        *("never ends", "slow"),
    ),
    "policy": ("error", "twice", "base exception", "cancels itself", "stop iteration", "wrong answer", "slow"),
    "read": (
        "error",
        "twice",
        "base exception",
        "cancels itself",
        "stop iteration",
        "never ends",
        "thread hangs",
        "slow",
    ),
    "task": ("cancelled alone", "twice", "supervisor cancelled", "all cancelled"),
    "loop": ("closed loop",),
}
"""By place; twelve in all, beside plain errors."""


class Odd(BaseException):
    """An error that is no `Exception`."""


class Leave(Exception):
    """Lets a stage's `run` return."""


class End:
    """What is to end, and when it did."""

    def __init__(self) -> None:
        self.left = 0
        self.way = ""
        self.fired_at: float | None = None
        self.gate = threading.Event()

    def arm(self, way: str) -> None:
        """Let the next to come here end in this way; the next two, for "twice"."""
        self.way, self.left, self.fired_at = way, 1 + (way == "twice"), None

    def due(self) -> str:
        """The way to end in, if it is time."""
        if not self.left:
            return ""
        self.left -= 1
        self.fired_at = time.perf_counter()
        return self.way

    def raises(self, way: str) -> None:
        """Raise what ends in an error."""
        errors: dict[str, BaseException] = {
            "error": OSError(5, "Input/output error"),
            "twice": ValueError("twice"),
            "base exception": Odd("base"),
            "cancels itself": asyncio.CancelledError(),
            "stop iteration": StopIteration("stop"),
            "returns early": Leave(),
        }
        if way in errors:
            raise errors[way]

    async def here(self) -> str:
        """End what runs here, or say in which other way it is to."""
        way = self.due()
        self.raises(way)
        if way == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        elif way == "never ends":
            await asyncio.Event().wait()
        elif way == "thread hangs":
            await outlast([asyncio.get_running_loop().run_in_executor(None, self.gate.wait, 10)])
        return way


class OddStage(Stage):
    """A user's stage."""

    def __init__(self, name: str, end: End) -> None:
        self.name = name
        self._end = end

    async def run(self) -> None:
        with contextlib.suppress(Leave):
            await super().run()

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        if await self._end.here() == "wrong answer":
            return replace(message, seq=message.seq + 1)
        return message


class OddPolicy:
    """A user's policy: stage2, until it is told otherwise."""

    name = "odd"
    triggered = True
    fallback_seconds = None
    micro_batches = 1
    kv_ahead = True

    def __init__(self, end: End, policy: Policy | None = None) -> None:
        found = policy or find_policy("stage2")
        self._end, self._policy = end, found
        self.waits: Waits = found.waits

    def fit(self, slots: Mapping[str, int]) -> "OddPolicy":
        return OddPolicy(self._end, self._policy.fit(slots))  # type: ignore[arg-type]

    def warmup(self) -> Sequence[Ask]:
        return self._policy.warmup()

    def at_start(self, half: Half) -> Sequence[Ask]:
        way = self._end.due()
        self._end.raises(way)
        if way == "slow":
            time.sleep(SLOW_SECONDS)
        return [half] if way == "wrong answer" else self._policy.at_start(half)  # type: ignore[list-item]


def odd_reads(model: Model, end: End) -> None:
    """Let reads of groups and of embedding rows end oddly."""
    source = model.runtime.source
    read_into, read_rows = source.read_into, source.rows.read

    async def reading(*arguments: Any) -> None:
        await end.here()
        await read_into(*arguments)

    async def reading_rows(*arguments: Any, **named: Any) -> None:
        await end.here()
        await read_rows(*arguments, **named)

    source.read_into, source.rows.read = reading, reading_rows  # type: ignore[method-assign]
    assert isinstance(source, CheckpointSource)


def stop_tasks(model: Model, end: End, way: str, pick: float) -> None:
    """Cancel a task of the model's, or all of them."""
    end.fired_at = time.perf_counter()
    crews = [line._crew for line in model.runtime.lines if line._crew is not None]
    tasks = sorted((task for crew in crews for task in crew.tasks), key=lambda task: task.get_name())
    supervisor = model._supervisor._task
    if way == "supervisor cancelled":
        supervisor.cancel()
    elif way == "all cancelled":
        for task in (*tasks, supervisor):
            task.cancel()
    elif tasks:
        tasks[int(pick * len(tasks))].cancel()
