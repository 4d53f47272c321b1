"""The sections of a model on a Ray cluster: an actor each, what is asked of all, and what their deaths look like."""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.cluster.cluster_sections import SectionDied, under_name
from pipeline.cluster.orders import PassOrder, SectionReport
from pipeline.cluster.placing import Placement
from pipeline.cluster.section_actor import SectionActor
from pipeline.cluster.section_calls import (
    NodeTrace,
    Offer,
    Opened,
    SectionPlan,
    SectionUnreachable,
    Survey,
    layers_of,
    name_layers,
)
from pipeline.errors import PenstockError

logger = logging.getLogger("penstock")
RESTART_SECONDS = 120.0
"""For Ray to find a node for a section that has died, and for that to open its files."""
RETRY_SECONDS = 0.2
CLOSING_SECONDS = 5.0
LONGEST_CAUSE = 200
THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_")
"""Environment variables that say how torch's threads compute; sections follow those of the coordinator."""
Result = TypeVar("Result")


class RaySections:
    """See `Sections`: an actor each, which Ray starts anew when it has died."""

    def __init__(self, placement: Placement, folder: Path, settings: Any) -> None:
        environment = {name: value for name, value in os.environ.items() if name.startswith(THREADS)}
        actor = ray.remote(SectionActor)
        self._placement = placement
        self._actors: list[Any] = [
            actor.options(**placement.options(number)).remote(folder, settings, number, environment)
            for number in range(placement.sections)
        ]
        self.plan: SectionPlan | None = None
        self.nodes = [*placement.nodes]

    def agree(self, owners: Sequence[int], kv_tokens: int, pass_tokens: int) -> None:
        """Say which section computes each layer, and for how many tokens all have room."""
        self.plan = SectionPlan(tuple(owners), kv_tokens, pass_tokens, self._actors)

    async def survey(self) -> list[Survey]:
        """What each finds on its node. Raises PenstockError as that says."""
        surveys = await asyncio.gather(*(self._ask(number, "survey") for number in self._numbers))
        self.nodes = [survey.node for survey in surveys]
        return surveys

    async def offer(self, owners: Sequence[int], *, fitting: bool) -> list[Offer]:
        """What each could do with its layers, as these are dealt. Raises ConfigError where it must fit and does not."""
        layers = [layers_of(number, owners) for number in self._numbers]
        asked = [self._ask(number, "offer", layers[number], fitting=fitting) for number in self._numbers]
        return [*await asyncio.gather(*asked)]

    async def begin(self) -> list[Opened]:
        """Let all begin anew: those too that were started again. Raises PenstockError where one cannot."""
        return await asyncio.gather(*map(self._begin, self._numbers))

    async def compute(self, order: PassOrder) -> list[SectionReport]:
        """Let a pass go through all of them. Raises the first failure, of those that died the one that did."""
        return await first_failure([self._ask(number, "compute", order) for number in self._numbers])

    def withdraw(self, numbers: Sequence[int]) -> None:
        """Let them compute no more of these sequences in this pass; nobody waits until they know."""
        for actor in self._actors:
            actor.withdraw.remote(numbers)

    async def clock(self, number: int) -> float:
        """What the clock of a section says, in seconds."""
        seconds: float = await self._ask(number, "clock")
        return seconds

    async def record(self, number: int) -> None:
        """Let a section record what it does, and forget what it has recorded."""
        await self._ask(number, "record")

    async def recorded(self, number: int) -> NodeTrace:
        """Let it record no more, and give what it has. Raises NotBegun where its process was started anew since."""
        told: NodeTrace = await self._ask(number, "recorded")
        return told

    async def watch(self) -> None:
        """Wait until one of them has died. Raises SectionDied."""
        calls = [actor.watch.remote() for actor in self._actors]
        try:
            await first_failure([self._answer(number, call) for number, call in enumerate(calls)])
        finally:
            for call in calls:  # else each new beginning would leave one more in the actors that live
                ray.cancel(call)

    async def aclose(self) -> None:
        """Let them give everything back, and end them."""
        from ray.util.placement_group import remove_placement_group

        closing = [asyncio.ensure_future(self._ask(number, "close")) for number in self._numbers]
        await asyncio.wait(closing, timeout=CLOSING_SECONDS)
        for one in closing:
            one.cancel()
        for actor in self._actors:
            ray.kill(actor)
        remove_placement_group(self._placement.group)

    @property
    def _numbers(self) -> range:
        return range(len(self._actors))

    async def _begin(self, number: int) -> Opened:
        """Raises SectionDied where no node has room for it, or it dies whenever it begins."""
        until = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    opened: Opened = await self._ask(number, "begin", self.plan)
                self.nodes[number] = opened.node
                return opened
            except TimeoutError:
                cause = ConnectionError(f"it was not started again within {RESTART_SECONDS:g} s")
                raise SectionDied(self.name(number), None, None, cause) from cause
            except SectionDied:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, number: int, method: str, *arguments: Any, **named: Any) -> Any:
        """What a section answers to a call. Raises as `_answer`."""
        return await self._answer(number, getattr(self._actors[number], method).remote(*arguments, **named))

    async def _answer(self, number: int, call: Any) -> Any:
        """The answer of a section. Raises what it raises, under its name, or SectionDied."""
        try:
            return await call
        except RayTaskError as error:
            failure = self._named(number, error.cause)
        except RayError as error:
            failure = SectionDied(self.name(number), None, None, _gone(error))
        raise failure from failure.__cause__

    def _named(self, number: int, error: BaseException) -> PenstockError:
        """The error of a section, with its name."""
        if isinstance(error, SectionUnreachable):
            return SectionDied(self.name(error.section), None, None, _gone(error))
        return under_name(self.name(number), error)

    def name(self, number: int) -> str:
        """A section for people: its number, its node and, as far as they are known, its layers."""
        layers = "" if self.plan is None else f" ({name_layers(number, self.plan.owners)})"
        return f"section {number}{layers} on node {self.nodes[number]}"


def _gone(error: BaseException) -> ConnectionError:
    """Ray says much, and most of it to those who know Ray: the first line is kept."""
    first = str(error).strip().split("\n")[0][:LONGEST_CAUSE]
    return ConnectionError(f"its process has ended, or its node cannot be reached ({type(error).__name__}: {first})")


async def first_failure(asked: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All answers. Where one fails, its error at once; where several do, that of a section that died."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in done if (error := task.exception()) is not None]
        for error in sorted(errors, key=lambda one: not isinstance(one, SectionDied)):
            raise error
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
