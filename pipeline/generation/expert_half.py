"""The second half of a layer with experts: the router's choice, the experts as they come, and their sum."""

import asyncio
import functools
import itertools
from collections.abc import Coroutine, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.expert_cache import streams
from actors.core.expert_store import ExpertStore
from actors.core.message import READY, GroupKey, Message, ended
from pipeline.devices.port import Device
from pipeline.formats.parts import attends, expert_index, gives_logits
from pipeline.generation.asked_ahead import ask_ahead
from pipeline.generation.batching import Piece
from pipeline.generation.expert_work import ExpertWork, NextRouter
from pipeline.generation.generation_pass import GenerationPass, token_ids
from pipeline.generation.host_experts import HostExperts, Run
from pipeline.generation.launches import HalfWork, Launch
from pipeline.generation.look_ahead import LookAhead
from pipeline.generation.micro_batches import MicroBatch
from pipeline.generation.routing_recorder import RoutingRecorder
from pipeline.models.feed_forwards import Experts
from pipeline.reading.source import CheckpointSource

TURNS_TO_READ = 3
"""The turns of the event loop until reads have been asked for: the planner's, the reader's, and the read's own."""


class ExpertHalf:
    """Asks the store for the experts that a layer's rows have chosen, and launches each when its bytes are on the way.

    The host must know the router's choice before it can ask: this is the fourth place where it waits (rule 4). A choice
    that follows from the tokens is known, and asked for, before it is the layer's turn. The fifth place is the wait for
    experts that the CPU computes, on the `host`. A `recorder` is told of every choice.
    """

    recorder: RoutingRecorder | None = None

    def __init__(
        self,
        device: Device,
        store: ExpertStore,
        source: CheckpointSource,
        work: ExpertWork,
        host: HostExperts | None,
        ahead: LookAhead,
    ) -> None:
        self._device = device
        self._store = store
        self._source = source
        self._work = work
        self._host = host
        self._ahead = ahead
        self._stays: dict[int, Message[Slot]] = {}
        self._known = READY

    def begin(self, pieces: Sequence[Piece], rows: int) -> None:
        """A pass with these pieces begins, of so many rows, those of no token too."""
        if (of_tokens := self._work.of_tokens) is not None:
            self._known = of_tokens.begin(tokens := token_ids(pieces), rows)
            if (first := self._work.next_kind(-1)) is not None and first[1].routing.by_token:
                self._store.hint(first[0], self._work.union(first[0], len(tokens)))
        self._ahead.begin(count := len(token_ids(pieces)))
        if self._host is not None:
            self._host.begin(count)
        if self.recorder is not None:
            prompts = [len(piece.token_ids) > 1 or not piece.logit_rows for piece in pieces for _ in piece.token_ids]
            self.recorder.begin(prompts)

    def end(self) -> None:
        """The results of the pass that has begun last are there."""
        self._ahead.end()
        if self._host is not None:
            self._host.end()

    def computes(self, key: GroupKey) -> bool:
        """Whether a group is that of a layer with experts."""
        return not attends(key[1]) and not gives_logits(key[1]) and self._work.kind(key[0]) is not None

    def prepare(
        self, pass_: GenerationPass, message: Message[Slot], launch: Launch
    ) -> Coroutine[Any, Any, None] | None:
        """Choose experts for all rows of the pass, and launch them all; None where there are none, or no need."""
        kind = self._work.kind(message.layer)
        if kind is not None and message.at.stays:
            self._stays[message.layer] = message.moved(message.at, READY)
        return None if kind is None or pass_.abandoned else self._run(kind, pass_, message, launch)

    def with_choice(
        self, pass_: GenerationPass, layer: int, attention: HalfWork, repeats: Hashable
    ) -> tuple[HalfWork, Hashable]:
        """An attention and the choice of the experts behind it, to be launched as one, and what that depends on.

        The host waits for the choice, so each launch before it costs time. The attention is returned as it is where the
        layer has no experts, the group of its router does not stay, or either half does not repeat.
        """
        kind, message = self._work.kind(layer), self._staying(layer)
        if kind is None or message is None or kind.routing.by_token:
            return attention, repeats
        rows, guesses = pass_.tokens, self._guesses(kind, pass_, layer)
        if repeats is None or (choosing := _choosing(pass_, guesses)) is None:
            return attention, repeats
        pass_.chosen_of = layer
        choose = functools.partial(self._work.choose_and_sort, message, kind, guesses, rows)
        depends = (repeats, choosing, message.at.buffer.tensor.data_ptr())
        return functools.partial(_one_after_the_other, attention, choose), depends

    def add_up(self, pass_: GenerationPass, message: Message[Slot], launch: Launch) -> list[Event] | None:
        """Launch the sum, behind the experts; None for a layer that has none."""
        if (kind := self._work.kind(message.layer)) is None:
            return None
        if pass_.added_of == message.layer:
            return [pass_.last]
        rows, repeats, ran = pass_.tokens, _repeats(pass_, "add up"), list[Event]()
        for part in pass_.parts:
            work = functools.partial(self._work.add_up, message, kind, rows, part)
            # Behind the micro-batch before, with which it fails: only the last one is waited for at the end of a pass.
            ran.append(launch(message, pass_, part, work, ran[-1:], repeats))
        return ran

    async def close(self) -> None:
        """End the lane on which the CPU computes experts; the lines must have stopped."""
        if self._host is not None:
            await self._host.aclose()

    async def _run(self, kind: Experts, pass_: GenerationPass, message: Message[Slot], launch: Launch) -> None:
        guesses = self._guesses(kind, pass_, message.layer)
        if pass_.chosen_of != message.layer:
            self._launch_choice(kind, pass_, message, launch, guesses)
        counts = await self._counts(kind, pass_, message)
        self._ahead.asked += 1
        await self._want(kind, pass_, message, counts, guesses)
        await self._launch_wanted(kind, pass_, message, launch, counts)
        if self._host is not None and (multiplied := await self._host.ended()) is not None and not pass_.abandoned:
            work = self._host.handing_over(self._work.outputs)
            launch(message, pass_, pass_.parts[-1], work, (multiplied,), short=True)

    def _launch_choice(
        self,
        kind: Experts,
        pass_: GenerationPass,
        message: Message[Slot],
        launch: Launch,
        guesses: NextRouter | None,
    ) -> None:
        """Launch the choice of experts, and with that of the last micro-batch the order of all rows."""
        *others, last = pass_.parts
        known = [self._known] if kind.routing.by_token else []
        for part in others:
            launch(message, pass_, part, functools.partial(self._work.choose, message, kind, part, guesses), known)
        work = functools.partial(self._work.choose_and_sort, message, kind, guesses, pass_.tokens, last)
        after = [*known, *(part.last for part in others)]
        launch(message, pass_, last, work, after, _choosing(pass_, guesses))

    async def _want(
        self,
        kind: Experts,
        pass_: GenerationPass,
        message: Message[Slot],
        counts: Sequence[int],
        guesses: NextRouter | None,
    ) -> None:
        """Ask the store for the experts that rows have chosen, and ahead for some of the next layer."""
        wanted = [index for index, count in enumerate(counts) if count]
        split = None if self._host is None else self._host.split(self._work.ids(kind, pass_.tokens), counts)
        if self._store.want(message.layer, wanted, streamed=streams(len(wanted), kind.count), split=split):
            # Reads begin before what is there is launched: that takes longer, and the disk would stand still.
            for _ in range(TURNS_TO_READ):
                await asyncio.sleep(0)
            self._source.hand_over()
        if wanted:
            ask_ahead(self._store, self._work, message.layer, len(wanted), pass_.tokens, guesses)

    async def _launch_wanted(
        self, kind: Experts, pass_: GenerationPass, message: Message[Slot], launch: Launch, counts: Sequence[int]
    ) -> None:
        """Launch experts as they come, until all that the layer wants are used."""
        ends = [0, *itertools.accumulate(counts)]
        left, before = len(counts) - counts.count(0), READY
        while left:
            arrived = await self._store.arrived(self._work.at_once)
            left -= len(arrived)
            if pass_.abandoned:
                self._store.used(arrived, READY)
                continue
            indices = [expert_index(one.group) for one in arrived]
            runs: Sequence[Run] = [(one, ends[at], ends[at + 1]) for one, at in zip(arrived, indices, strict=True)]
            if self._host is not None:
                runs = self._multiply_on_host(self._host, kind, runs)
            if runs:
                event = self._compute(kind, pass_, message, launch, runs, are_last=not left and self._host is None)
                self._store.used([one for one, _, _ in runs], event)
                if self._work.at_once is not None:
                    # Before more is launched: experts that come meanwhile go first, as reads wait for their slots.
                    await ended(before)
                    before = event

    def _multiply_on_host(self, host: HostExperts, kind: Experts, runs: Sequence[Run]) -> Sequence[Run]:
        """Let the CPU multiply by those that were left in host memory; returns the others."""
        left = [run for run in runs if host.is_here(run[0])]
        if left:
            self._store.used([message for message, _, _ in left], host.multiply(kind, left))
        return [run for run in runs if not host.is_here(run[0])]

    def _compute(
        self,
        kind: Experts,
        pass_: GenerationPass,
        message: Message[Slot],
        launch: Launch,
        runs: Sequence[Run],
        *,
        are_last: bool,
    ) -> Event:
        """Launch experts behind their arrival; where these are the last of the layer, and few, as one with the sum."""
        part, after, short = pass_.parts[-1], [one.event for one, _, _ in runs], self._work.is_short(runs)
        # Where choices follow from tokens the host does not wait for them, so the last launch may still read the table.
        repeats = _repeats(pass_, "multiply and add up") if are_last and not kind.routing.by_token else None
        if repeats is None or (stored := self._work.list_few(runs)) is None:
            work = functools.partial(self._work.compute, kind, runs)
            return launch(message, pass_, part, work, after, short=short)
        pass_.added_of, rows = message.layer, pass_.tokens
        work = functools.partial(self._work.compute_few, message, kind, stored, rows, part)
        return launch(message, pass_, part, work, after, (repeats, stored), short=short)

    def _staying(self, layer: int) -> Message[Slot] | None:
        """The group of a layer that has been computed with, and stays; None while a new run brings its bytes again."""
        message = self._stays.get(layer)
        return message if message is not None and message.at.is_leased else None

    def _guesses(self, kind: Experts, pass_: GenerationPass, layer: int) -> NextRouter | None:
        """The next layer with experts, whose router is asked beforehand, if look-ahead is on and its group stays.

        None where a choice follows from tokens: the host does not wait for it, and it need not be guessed.
        """
        following = self._work.next_kind(layer)
        if not self._ahead.asks or kind.routing.by_token or following is None:
            return None
        next_layer, next_kind = following
        message = self._staying(next_layer)
        if message is None or next_kind.chosen != kind.chosen or next_kind.routing.by_token:
            return None
        return message, pass_.padded_rows

    async def _counts(self, kind: Experts, pass_: GenerationPass, message: Message[Slot]) -> list[int]:
        """Wait for the choice; returns how many rows use each expert, [] if it has failed: then the sum fails, too."""
        chosen, rows = pass_.last, pass_.tokens
        of_tokens = self._work.of_tokens if kind.routing.by_token else None
        if of_tokens is not None and (self._host is None or not self._host.opens):  # else the CPU needs the rows
            return self._counted(kind, message, of_tokens.of_tokens(message.layer, rows))
        if self._host is not None:
            chosen = self._host.fetch(self._work.inputs_memory, rows, chosen)
        await self._device.ended_soon(chosen)
        if chosen.error is not None:
            return []
        return self._counted(kind, message, self._work.ids(kind, rows))

    def _counted(self, kind: Experts, message: Message[Slot], ids_TK: torch.Tensor) -> list[int]:
        if self.recorder is not None:
            self.recorder.chosen(message.layer, ids_TK.numpy())
        counts: list[int] = np.bincount(ids_TK.numpy().reshape(-1), minlength=kind.count).tolist()
        return counts


def _repeats(pass_: GenerationPass, what: str) -> Hashable:
    """A key for work that launches the same in every pass of as many rows: in one micro-batch without empty rows."""
    full = len(pass_.parts) == 1 and pass_.padded_rows == pass_.tokens
    return (what, pass_.padded_rows) if full else None


def _choosing(pass_: GenerationPass, guesses: NextRouter | None) -> Hashable:
    return _repeats(pass_, f"choose, guess {guesses is not None}")


def _one_after_the_other(attention: HalfWork, choose: HalfWork, part: MicroBatch) -> None:
    attention(part)
    choose(part)
