"""A simulated disk, catalog and program, for the production actors to run against."""

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from actors.core.budget import Slot
from actors.core.message import READY, Message, ended
from actors.core.ports import Buffer, Device, Event, PrefetchPolicy
from actors.core.trace import Trace
from pipeline.simulation.timings import Timings

BYTES_PER_SECOND = 1e9
"""Simulated copies are as long as they take: one byte is one nanosecond."""


Computed: TypeAlias = Counter[tuple[int, str]]
"""How often each group was computed: for that pass it moves, once or twice, unless it may move a pass ahead."""


@dataclass(frozen=True, slots=True)
class SimCopy:
    """All bytes of a group as one run."""

    length: int
    source_offset: int = 0
    target_offset: int = 0


class SimCatalog:
    """Groups that are known by how long they take; `two_kinds` as in the real catalog."""

    def __init__(self, timings: Timings, *, two_kinds: bool = True, computed: Computed | None = None) -> None:
        self._timings = timings
        self._two_kinds = two_kinds
        self._computed = computed
        self._uploads: Counter[tuple[int, str]] = Counter()

    def kind(self, layer: int, group: str) -> str:
        """The kind of slot: "attn" or "ffn"; everything is "ffn" when there is only one slot."""
        return "attn" if group == "attn" and self._two_kinds else "ffn"

    def copies(self, layer: int, group: str) -> Sequence[SimCopy]:
        """One copy, for the next upload of the group."""
        pass_ = (self._uploads if self._computed is None else self._computed)[layer, group]
        self._uploads[layer, group] += 1
        seconds = self._timings.upload_seconds(pass_, layer, group)
        return (SimCopy(round(seconds * BYTES_PER_SECOND)),)

    def tensors(self, message: Message[Slot]) -> Mapping[str, Any]:
        """Nothing is in a simulated slot."""
        return {}


class SimDisk:
    """A disk that serves one read after the other, first come first served."""

    def __init__(self, timings: Timings, *, computed: Computed | None = None) -> None:
        self._timings = timings
        self._computed = computed
        self._reads: Counter[tuple[int, str]] = Counter()
        self._free_at = 0.0

    async def read_into(self, layer: int, group: str, buffer: Buffer) -> None:
        """Take as long as the group's next read needs."""
        loop = asyncio.get_running_loop()
        pass_ = (self._reads if self._computed is None else self._computed)[layer, group]
        self._reads[layer, group] += 1
        seconds = self._timings.read_seconds(pass_, layer, group)
        self._free_at = max(loop.time(), self._free_at) + seconds
        await asyncio.sleep(self._free_at - loop.time())


@dataclass(slots=True)
class SimPass:
    """One simulated pass: when it began, what was computed, and the latest event of every micro-batch."""

    index: int
    began: float
    parts: list[Event]
    kv: Event = READY
    steps: list[tuple[int, str]] = field(default_factory=list)


class SimProgram:
    """A program that computes for as long as the timings say, and moves KV blocks beside it."""

    def __init__(
        self,
        device: Device,
        timings: Timings,
        policy: PrefetchPolicy,
        trace: Trace,
        work: Callable[[int, str], float] | None = None,
        pass_tokens: int | None = None,
    ) -> None:
        self.order = timings.order
        self.passes: list[SimPass] = []
        self.computed: Computed = Counter()
        self._device = device
        self._timings = timings
        self._micro_batches = min(policy.micro_batches, pass_tokens or policy.micro_batches)
        self._kv_ahead = getattr(policy, "kv_ahead", True)
        self._trace = trace
        self._work = work
        self._attentions = {key for key in self.order if key[1] == "attn"}
        self._kv_moves: list[tuple[str, Message[Slot], Event]] = []

    async def begin(self) -> SimPass:
        """Begin once the host has something to compute."""
        await asyncio.sleep(self._timings.begin_seconds(len(self.passes)))
        parts: list[Event] = [READY] * self._micro_batches
        self.passes.append(SimPass(len(self.passes), asyncio.get_running_loop().time(), parts))
        return self.passes[-1]

    async def prepare(self, pass_: SimPass, message: Message[Slot]) -> None:
        """Nothing to wait for: the device waits for the KV blocks."""

    async def check_in(self, pass_: SimPass, message: Message[Slot]) -> None:
        """Wait for the device and the group, and then for as long as a check takes."""
        for part in pass_.parts:
            await ended(part)
        await ended(message.event)
        await asyncio.sleep(self._timings.check_seconds)

    def step(self, pass_: SimPass, message: Message[Slot]) -> Sequence[Event]:
        """Occupy the lane of the half, micro-batch by micro-batch."""
        pass_.steps.append((message.layer, message.group))
        self.computed[message.layer, message.group] += 1
        lane = "compute" if len(pass_.parts) == 1 else "attn" if message.group == "attn" else "ffn"
        needs: list[Event] = [message.event]
        if message.group == "attn":
            needs.append(self._kv_needed(pass_, message))
        ran: list[Event] = []
        seconds = functools.partial(self._seconds, pass_, message)
        for part, before in enumerate(pass_.parts):
            # After the part before, whose lane it shares: so that the failure of one is the failure of all.
            ran.append(self._device.launch(lane, seconds, (*needs, before, *ran[-1:])))
            pass_.parts[part] = ran[-1]
        self._move_kv(pass_, message, ran)
        return ran

    async def finish(self, pass_: SimPass) -> None:
        """Wait for the last step."""
        for part in pass_.parts:
            await part.wait()
        self._record_kv()

    def _seconds(self, pass_: SimPass, message: Message[Slot]) -> float:
        layer, group = message.layer, message.group
        whole = self._work(layer, group) if self._work else self._timings.compute_seconds(pass_.index, layer, group)
        return whole / len(pass_.parts)

    def _kv_needed(self, pass_: SimPass, message: Message[Slot]) -> Event:
        """The KV blocks of this layer. As it starts, those of the next are asked for if the policy looks ahead."""
        if message.layer == self.order[0][0]:
            pass_.kv = self._kv_move("kv_in", message, ())
        needed = pass_.kv
        if self._kv_ahead:
            pass_.kv = self._kv_move("kv_in", message, (message.event, needed, pass_.parts[0]), ahead=1)
        return needed

    def _move_kv(self, pass_: SimPass, message: Message[Slot], ran: Sequence[Event]) -> None:
        """After the attention its new rows go; after the ffn the next layer's blocks are asked for, if not yet."""
        if message.group == "attn":
            self._kv_move("kv_out", message, ran[-1:])
        elif not self._kv_ahead:
            pass_.kv = self._kv_move("kv_in", message, ran[-1:], ahead=1)

    def _kv_move(self, lane: str, message: Message[Slot], after: Sequence[Event], ahead: int = 0) -> Event:
        layer = message.layer + ahead
        if not self._timings.kv_seconds or (layer, "attn") not in self._attentions:
            return READY
        event = self._device.launch(lane, lambda: self._timings.kv_seconds, after)
        self._kv_moves.append((lane, replace(message, layer=layer, group="kv"), event))
        return event

    def _record_kv(self) -> None:
        """No actor moves the simulated KV blocks, so their spans are recorded here."""
        if self._trace.recording:
            for lane, moved, event in self._kv_moves:
                if event.span is not None:
                    self._trace.span(lane, "work", moved, *event.span)
        self._kv_moves = [move for move in self._kv_moves if not move[2].done()]
