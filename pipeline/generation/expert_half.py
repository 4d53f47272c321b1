"""The second half of a layer with experts: the router's choice, the experts as they come, and their sum."""

import asyncio
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.expert_cache import streams
from actors.core.expert_store import ExpertStore
from actors.core.message import READY, GroupKey, Message, ended
from pipeline.devices.port import Device
from pipeline.formats.parts import attends, expert_index, gives_logits
from pipeline.generation.batching import Piece
from pipeline.generation.expert_work import ExpertWork, NextRouter
from pipeline.generation.generation_pass import GenerationPass, token_ids
from pipeline.generation.host_experts import HostExperts, Run
from pipeline.generation.look_ahead import LookAhead
from pipeline.generation.micro_batches import MicroBatch
from pipeline.generation.routing_recorder import RoutingRecorder
from pipeline.models.feed_forwards import Experts
from pipeline.reading.source import CheckpointSource

TURNS_TO_READ = 3
"""The turns of the event loop until reads have been asked for: the planner's, the reader's, and the read's own."""
NEARLY_ALL = 0.85
"""A pass that uses this share of a layer's experts is taken to use those of the next one: the disk need not wait for
its router. Of eight rows that choose two of eight experts four fifths of the layers use as many."""


Half: TypeAlias = Callable[[MicroBatch], None]
"""What computes half a layer, or a part of it, for the rows of a micro-batch."""


class Launch(Protocol):
    """Launches work on the lane of the message's group, behind what came before in the micro-batch."""

    def __call__(
        self,
        message: Message[Slot],
        pass_: GenerationPass,
        part: MicroBatch,
        work: Callable[[], object],
        after: Sequence[Event] = (),
        repeats: Hashable = None,
        *,
        short: bool = False,
    ) -> Event:
        """Give the event of its end."""


class ExpertHalf:
    """Asks the store for the experts that a layer's rows have chosen, and launches each when its bytes are on the way.

    The host must know what was chosen before it can ask: this is the fourth place where it waits (rule 4). Where that
    follows from the tokens it waits for nothing, and the store is told before it is the layer's turn. The fifth is for
    what the CPU computes of the experts, on the `host`. With a `recorder` it is told of every choice.
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
        self, pass_: GenerationPass, layer: int, attention: Half, repeats: Hashable
    ) -> tuple[Half, Hashable]:
        """An attention and the choice of the experts behind it, to be launched as one, and what that depends on.

        The host waits for that choice, so each launch before it counts. An attention alone is given back as it is: of a
        layer without experts, or whose other group moves or is not there; and where either does not repeat.
        """
        kind, message = self._work.kind(layer), self._staying(layer)
        if kind is None or message is None or kind.routing.by_token:
            return attention, repeats
        rows, guesses = len(token_ids(pass_.pieces)), self._guesses(kind, pass_, layer)
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
        rows, repeats, ran = len(token_ids(pass_.pieces)), _repeats(pass_, "add up"), list[Event]()
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
        rows, last = len(token_ids(pass_.pieces)), pass_.parts[-1]
        guesses, known = self._guesses(kind, pass_, message.layer), [self._known] if kind.routing.by_token else []
        if pass_.chosen_of != message.layer:
            for part in pass_.parts[:-1]:
                launch(message, pass_, part, functools.partial(self._work.choose, message, kind, part, guesses), known)
            work = functools.partial(self._work.choose_and_sort, message, kind, guesses, rows, last)
            others = [*known, *(part.last for part in pass_.parts[:-1])]
            launch(message, pass_, last, work, others, _choosing(pass_, guesses))
        counts = await self._counts(kind, pass_, message)
        self._ahead.asked += 1
        ends = [0, *itertools.accumulate(counts)]
        wanted = [index for index, count in enumerate(counts) if count]
        split = None if self._host is None else self._host.split(self._work.ids(kind, rows), counts)
        if self._store.want(message.layer, wanted, streamed=streams(len(wanted), kind.count), split=split):
            # Launching what is there takes longer, and the disk would stand still.
            for _ in range(TURNS_TO_READ):
                await asyncio.sleep(0)
            self._source.hand_over()
        if wanted:
            self._hint(kind, message, wanted, rows, guesses)
        left, before = len(wanted), READY
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
                    # What comes meanwhile is next: behind all that was there it would keep slots that reads want.
                    await ended(before)
                    before = event
        if self._host is not None and (multiplied := await self._host.ended()) is not None and not pass_.abandoned:
            launch(message, pass_, last, self._host.handing_over(self._work.outputs), (multiplied,), short=True)

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
        # Behind a choice that follows from tokens the host has not waited for the table's last launch.
        repeats = _repeats(pass_, "multiply and add up") if are_last and not kind.routing.by_token else None
        if repeats is None or (stored := self._work.list_few(runs)) is None:
            work = functools.partial(self._work.compute, kind, runs)
            return launch(message, pass_, part, work, after, short=short)
        pass_.added_of, rows = message.layer, len(token_ids(pass_.pieces))
        work = functools.partial(self._work.compute_few, message, kind, stored, rows, part)
        return launch(message, pass_, part, work, after, (repeats, stored), short=short)

    def _staying(self, layer: int) -> Message[Slot] | None:
        """The group of a layer that has been computed with, and stays; None while a new run brings its bytes again."""
        message = self._stays.get(layer)
        return message if message is not None and message.at.is_leased else None

    def _guesses(self, kind: Experts, pass_: GenerationPass, layer: int) -> NextRouter | None:
        """Whom to ask beforehand: the next router, where that is wished and its group stays.

        Not where a choice follows from tokens: either is known then, and the host waits for none.
        """
        if not self._ahead.asks or kind.routing.by_token:
            return None
        later, following = self._work.next_kind(layer) or (-1, kind)
        if (message := self._staying(later)) is None or following.chosen != kind.chosen or following.routing.by_token:
            return None
        return message, pass_.padded_rows

    def _hint(
        self,
        kind: Experts,
        message: Message[Slot],
        wanted: Sequence[int],
        rows: int,
        guesses: NextRouter | None,
    ) -> None:
        """Let experts of the next layer come ahead: those that its tokens need, if that is known; any where nearly all
        are needed; or what its router would take.
        """
        following = self._work.next_kind(message.layer)
        if following is not None and following[1].routing.by_token:
            self._store.hint(following[0], self._work.union(following[0], rows))
        elif len(wanted) >= NEARLY_ALL * kind.count and following is not None:
            self._store.hint(following[0], range(following[1].count))
        elif guesses is not None:
            group, first = guesses
            weights = Counter[int]()
            for row in self._work.ids(kind, rows, first).tolist():
                for rank, index in enumerate(row):
                    weights[index] += kind.chosen - rank
            self._store.guess(group.layer, [index for index, _ in weights.most_common()])

    async def _counts(self, kind: Experts, pass_: GenerationPass, message: Message[Slot]) -> list[int]:
        """How many rows have chosen each expert; none where choosing has failed, which the sum fails with, too."""
        chosen, rows = pass_.last, len(token_ids(pass_.pieces))
        of_tokens = self._work.of_tokens if kind.routing.by_token else None
        if of_tokens is not None and (self._host is None or not self._host.opens):  # else rows for the CPU must come
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
    """What is launched for one micro-batch is always the same where each of its rows has a token."""
    full = len(pass_.parts) == 1 and pass_.padded_rows == len(token_ids(pass_.pieces))
    return (what, pass_.padded_rows) if full else None


def _choosing(pass_: GenerationPass, guesses: NextRouter | None) -> Hashable:
    return _repeats(pass_, f"choose, guess {guesses is not None}")


def _one_after_the_other(attention: Half, choose: Half, part: MicroBatch) -> None:
    attention(part)
    choose(part)
