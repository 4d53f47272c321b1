"""The floors of a pass, measured in the process that runs it: reading alone, copying alone, and computing alone."""

import asyncio
import contextlib
import itertools
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.core.budget import Budget, Slot
from actors.core.message import READY, GroupKey, Message
from actors.core.stretch import stretches
from pipeline.config import Config
from pipeline.engine.residency import Residency
from pipeline.errors import ConfigError, RequestError
from pipeline.formats.parts import attends
from pipeline.generation.build import build
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.samples import chunks_of
from pipeline.generation.sequence import RunningSequence
from pipeline.models.model_config import read_config
from pipeline.system.host_memory import available_host_bytes


@contextlib.asynccontextmanager
async def apart(folder: Path, settings: Mapping[str, Any]) -> AsyncIterator[ModelRuntime]:
    """A runtime in which nothing stays and whose line never runs, to be measured apart from a model that is open."""
    config = Config.from_arguments({**settings, "residency": False})
    async with contextlib.aclosing(await asyncio.to_thread(build, folder, config)) as runtime:
        yield runtime


def refuse_experts(folder: Path, what: str) -> None:
    """Raise ConfigError for a model with experts: which of them a pass reads and computes follows from its tokens."""
    if read_config(folder).expert_kinds:
        raise ConfigError(
            f"{what}: need a model whose passes all read the same, {folder} has experts; measure it with bench speed "
            "or bench throughput"
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """All groups of a pass in device memory, as messages. `aliased` when groups had to share memory to fit."""

    messages: tuple[Message[Slot], ...]
    aliased: bool


class Floors:
    """Measures on a runtime of its own, without residents, whose line never runs.

    What stays by the `residency` of the measured runtime is not read by its passes, and so not for its floor.
    """

    def __init__(self, runtime: ModelRuntime, residency: Residency) -> None:
        self._runtime = runtime
        self._host, *on_device = runtime.line.budgets
        self._device = on_device[0] if on_device else None
        in_host, in_device = (residency.arrived(runtime.catalog.places[index]) for index in (0, -1))
        self._read_in_pass = [group for group in runtime.catalog.order if group not in in_host]
        self._uploaded_in_pass = [group for group in runtime.catalog.order if group not in in_device]

    async def read_seconds(self) -> float:
        """Read every group of a pass with our own reader and nothing else, as many at a time as there are host slots.

        Two sweeps without a pause between them; the second is measured, from the end of the first to its own, as a
        pass is. Started cold, a sweep would also count the time in which the disk's queue fills and drains.
        """
        if not self._read_in_pass:
            return 0.0
        landed = await self._sweep_twice()
        return landed[-1] - landed[len(landed) // 2 - 1]

    async def both_seconds(self, loaded: Loaded, lengths: Sequence[int] = (1,)) -> float:
        """Read what a pass reads and compute what it computes, at the same time, neither waiting for the other.

        Where they share cores or memory, each slows the other, and no pass can be faster than this. Half of the time
        that two of each take; where memory is not one, copies are left out.
        """
        started = time.perf_counter()

        async def compute_twice() -> None:
            for _ in range(2):
                await self.compute(loaded, lengths)

        await asyncio.gather(self._sweep_twice(), compute_twice())
        return (time.perf_counter() - started) / 2

    async def _sweep_twice(self) -> list[float]:
        """Return the moments at which the groups had landed."""
        reads = []
        for key in (*self._read_in_pass, *self._read_in_pass):
            slot = await self._host.acquire(self._runtime.catalog.kind(key))
            reads.append(asyncio.create_task(self._read(key, slot)))
        return await asyncio.gather(*reads)

    async def upload_seconds(self) -> float:
        """Copy every group of a pass to the device and nothing else, one copy right behind the other.

        Measured from the end of the first copy, whose bytes count in proportion. Nothing where memory is one.
        """
        if self._device is None or not self._uploaded_in_pass:
            return 0.0
        seconds, copied = await self.upload(self._uploaded_in_pass)
        return seconds * sum(copied) / max(1, sum(copied[1:]))

    async def upload(self, keys: Sequence[GroupKey]) -> tuple[float, list[int]]:
        """Copy groups to a device with memory of its own, one right behind the other.

        Returns the seconds from the end of the first copy to that of the last, and the bytes of each.
        """
        catalog, device = self._runtime.catalog, self._runtime.device
        kinds = {catalog.kind(key) for key in keys}
        slots = {kind: [await budget.acquire(kind) for budget in self._runtime.line.budgets] for kind in kinds}
        copies = [catalog.copies(key) for key in keys]
        events = []
        for key, each in zip(keys, copies, strict=True):
            source, target = slots[catalog.kind(key)]
            events.append(device.upload(source.buffer, target.buffer, each, ()))
        for event in events:
            await event.wait()
        for slot in itertools.chain.from_iterable(slots.values()):
            slot.release(after=READY)
        (_, first), (_, last) = (events[index].span or (0.0, 0.0) for index in (0, -1))
        return last - first, [sum(copy.length for copy in each) for each in copies]

    async def load(self, *, shared: bool = False) -> Loaded:
        """Bring every group into device memory for good; `shared`, or where they do not fit, one for all alike."""
        runtime, order = self._runtime, self._runtime.catalog.order
        place = runtime.catalog.places[-1]
        sizes = runtime.catalog.slot_bytes(place)
        kinds = [runtime.catalog.kind(key) for key in order]
        one_by_one = [*zip(order, kinds, strict=True)]
        aliased = shared or sum(sizes[kind] for kind in kinds) > available_host_bytes() // 2
        alike = {key: (kind, runtime.catalog.alike(key) if aliased else key) for key, kind in one_by_one}
        counts = Counter(kind for kind, _ in set(alike.values()))
        cells = {kind: [runtime.device.device_memory(sizes[kind]) for _ in range(n)] for kind, n in counts.items()}
        memory = Budget(place, cells, time.perf_counter)
        first: dict[tuple[str, object], Slot] = {}
        messages = []
        for seq, (key, kind) in enumerate(one_by_one):
            if alike[key] not in first:
                first[alike[key]] = await memory.acquire(kind)
                await self._fill(key, first[alike[key]])
            messages.append(Message(*key, seq, first[alike[key]], READY))
        return Loaded(tuple(messages), aliased)

    async def compute_seconds(self, loaded: Loaded, lengths: Sequence[int] = (1,)) -> float:
        """Run one pass with every group in place, without the line; it carries a prompt of each of the `lengths`."""
        started = time.perf_counter()
        await self.compute(loaded, lengths)
        return time.perf_counter() - started

    async def decode_seconds(self, loaded: Loaded, requests: int, passes: int) -> list[float]:
        """Decode so many requests with every group in place for good, and return for how long each pass ran.

        The first pass computes their prompts. As groups stay, a device records what stretches of them
        launch, and later repeats it.
        Raises RequestError when there is no room for all of them in one pass.
        """
        section, buffers = self._runtime.section, {one.key: one.at.buffer for one in loaded.messages}
        memory = Budget("floor", {}, time.perf_counter, buffers)
        messages = [Message(*one.key, one.seq, await memory.acquire("", one.key), READY) for one in loaded.messages]
        for _ in range(requests):
            self._submit([1], passes)
        seconds = []
        for _ in range(passes):
            started = time.perf_counter()
            pass_ = await section.begin()
            _check_tokens(pass_, requests)
            for groups in stretches(messages, section):
                if not section.stretch(pass_, groups):
                    for message in groups:
                        section.step(pass_, message)
            await section.finish(pass_)
            seconds.append(time.perf_counter() - started)
        return seconds

    async def sequential_pass_seconds(self, loaded: Loaded, lengths: Sequence[int] = (1,)) -> float:
        """A pass with nothing beside anything: read a group, wait, copy it, wait, compute it, wait.

        It carries what `compute_seconds` carries, and reads what a measured pass reads; the rest lies in `loaded`.
        """
        moving = set(self._read_in_pass if self._device is None else self._uploaded_in_pass)
        groups = {message.key: message for message in loaded.messages}
        in_place = {group: message for group, message in groups.items() if group not in moving}
        for length in lengths:
            self._submit([1] * length)
        started = time.perf_counter()
        await self._sequential_pass(in_place)
        return time.perf_counter() - started

    async def sequential(self, prompt: list[int], new_tokens: int) -> AsyncIterator[tuple[float, int]]:
        """Decode in such passes, which read every group; yield the seconds of each pass, and its token."""
        chunks = chunks_of([self._submit(prompt, new_tokens)])
        for _ in range(new_tokens):
            started = time.perf_counter()
            await self._sequential_pass({})
            yield time.perf_counter() - started, (await anext(chunks)).token_ids[0]

    async def _sequential_pass(self, in_place: Mapping[GroupKey, Message[Slot]]) -> None:
        section = self._runtime.section
        pass_ = await section.begin()
        for seq, group in enumerate(self._runtime.catalog.order):
            if (message := in_place.get(group)) is None:
                message = Message(*group, seq, await self._fetched(group), READY)
            for event in section.step(pass_, message):
                await event.wait()
            if group not in in_place:
                message.at.release(after=READY)
        await section.finish(pass_)

    async def _fetched(self, key: GroupKey) -> Slot:
        """Bring a group into a slot that can be computed with; nothing is read where it stays in host memory."""
        kind = self._runtime.catalog.kind(key)
        staging = await self._host.acquire(kind)
        if key in self._read_in_pass:
            await self._runtime.source.read_into(key, staging.buffer)
        if self._device is None:
            return staging
        slot = await self._device.acquire(kind)
        await self._upload(key, staging, slot)
        return slot

    def _submit(self, prompt: list[int], new_tokens: int = 1) -> RunningSequence:
        parameters = SamplingParameters(max_new_tokens=new_tokens)
        size = self._runtime.config.vocabulary_size
        sequence = RunningSequence(array("i", prompt), parameters, frozenset(), None, size)
        self._runtime.admission.submit([sequence])
        return sequence

    async def compute(self, loaded: Loaded, lengths: Sequence[int], *, experts: bool = False) -> list[float]:
        """Run the same pass; return the seconds of each group, for those with `experts` of their sum alone.

        Raises RequestError when one pass has no room for it.
        """
        for length in lengths:
            self._submit([1] * length)
        return await self._pass(loaded, sum(lengths), experts=experts)

    async def decoded(self, loaded: Loaded, requests: int, *, experts: bool = False) -> tuple[float, list[float]]:
        """Let so many requests decode a token behind their prompts; return the seconds of that pass, and of each group.

        What rows of prompts launch a device does not record; what decoding launches it repeats. See `compute` for
        `experts`, which the pass of the prompts is without.
        """
        for _ in range(requests):
            self._submit([1], 2)
        seconds: list[float] = []
        started = 0.0
        for decodes in (False, True):
            started = time.perf_counter()
            seconds = await self._pass(loaded, requests, experts=experts and decodes)
        return time.perf_counter() - started, seconds

    async def _pass(self, loaded: Loaded, tokens: int, *, experts: bool = False) -> list[float]:
        section = self._runtime.section
        pass_ = await section.begin()
        _check_tokens(pass_, tokens)
        ran = []
        for message in loaded.messages:
            if experts and not attends(message.group) and (come := section.prepare(pass_, message)) is not None:
                await come
            ran.append(section.step(pass_, message))
        await section.finish(pass_)
        spans = [event.span or (0.0, 0.0) for events in ran for event in events]
        return [ended - started for started, ended in spans]

    async def _fill(self, key: GroupKey, slot: Slot) -> None:
        staging = await self._host.acquire(slot.kind)
        await self._runtime.source.read_into(key, staging.buffer)
        await self._upload(key, staging, slot)

    async def _upload(self, key: GroupKey, staging: Slot, slot: Slot) -> None:
        copies = self._runtime.catalog.copies(key)
        await self._runtime.device.upload(staging.buffer, slot.buffer, copies, ()).wait()
        staging.release(after=READY)

    async def _read(self, key: GroupKey, slot: Slot) -> float:
        await self._runtime.source.read_into(key, slot.buffer)
        slot.release(after=READY)
        return time.perf_counter()


def _check_tokens(pass_: GenerationPass, need: int) -> None:
    if (have := sum(len(piece.token_ids) for piece in pass_.pieces)) != need:
        raise RequestError(f"computing alone: need {need} tokens in one pass, have {have}; set kv_tokens")


def spread_tokens(tokens: int, sequences: int) -> list[int]:
    """Share so many tokens out to prompts of about the same length."""
    return [tokens // sequences + (index < tokens % sequences) for index in range(sequences)]
