"""The requests of a triggered policy that the planner has not sent yet.

The planner takes from here, the uploader and the compute scheduler report here. Positions count groups in compute
order, over all passes.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from actors.core.errors import PolicyFailed
from actors.core.event import Clock, Event
from actors.core.message import GroupKey, ended
from actors.core.order import halves, layer_parts
from actors.core.ports import Ask, Half, PrefetchPolicy, Priority
from actors.core.turns import Turns

logger = logging.getLogger("penstock")


class PrefetchQueue:
    """Requests by priority, then by age. A group that is asked for again can only move forward.

    `links` is how many groups may be on their way at a time: one for each hop between disk and device, and one between
    two hops, without which unequal groups would make the links wait for each other. So a request is sent when it is
    about to move, and not before: what was sent cannot be overtaken any more (rule 1). The kind of a resident group is
    None: it has a slot of its own.

    Attributes:
        asked_at: the most groups that a trigger asked for, by the kind of half that started.
        depth: how many layers ahead a trigger has asked, at most.
    """

    def __init__(
        self,
        order: Sequence[GroupKey],
        slot_kinds: Sequence[str | None],
        slots: Mapping[str, int],
        policy: PrefetchPolicy,
        *,
        links: int,
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._slots = slots
        self._links = links
        self._slot_kinds = slot_kinds
        self._earlier = {
            kind: list(itertools.accumulate((other == kind for other in slot_kinds), initial=0)) for kind in slots
        }
        self._parts = layer_parts(order)
        self._halves = halves(order)
        self._indices = {half: index for index, half in enumerate(self._halves)}
        self._turns = Turns(clock)
        self._warned = False
        self.asked_at: Counter[str] = Counter()
        self.depth = 0
        self.restart()

    def restart(self) -> None:
        """Begin a run: nothing is computed, and the first group is in demand."""
        self._waiting: dict[int, tuple[Priority, int]] = {}
        self._sent: set[int] = set()
        self._moving = 0
        self._age = 0
        self._computed = 0
        for ask in self._asks("warmup", self._policy.warmup):
            self._ask(0, ask)
        self._request(0, Priority.DEMAND)

    async def take(self) -> int:
        """Wait until a link is free and something is asked for; returns the position of the most urgent group."""
        await self._turns.take_turn(lambda: bool(self._waiting) and self._moving < self._links)
        position = min(self._waiting, key=self._waiting.__getitem__)
        del self._waiting[position]
        self._sent.add(position)
        self._moving += 1
        return position

    def arrived(self) -> None:
        """A group that was sent has arrived on the device."""
        self._moving -= 1
        self._turns.notify()

    async def report(self, position: int, before: Sequence[Event], after: Sequence[Event]) -> None:
        """Tell when a computation starts, once all `before` it have ended, and when it ends, once all `after` have."""
        for event in before:
            await ended(event)
        self.started(position)
        for event in after:
            await ended(event)
        self.ended(position)

    def started(self, position: int) -> None:
        """The computation of a group has started on the device: the policy's trigger."""
        # The half before may still compute its last micro-batch, but the one before that has ended.
        self._computed = max(self._computed, position - 1)
        layer, kind = self._halves[position % len(self._halves)]
        held = sum(self._slot_kind(sent) is not None for sent in self._sent)
        half = Half(kind, layer, held)
        asks = [ask for ask in self._asks("at_start", lambda: self._policy.at_start(half)) if self._ask(position, ask)]
        self.asked_at[kind] = max(self.asked_at[kind], len(asks))
        self.depth = max(self.depth, *(ask.layer - layer for ask in asks), 0)

    def ended(self, position: int) -> None:
        """A group's computation has ended: its slot is free, and the next group is demanded if it was not asked for."""
        self._sent.discard(position)
        self._computed = max(self._computed, position + 1)
        if position + 1 not in self._waiting:
            self._request(position + 1, Priority.DEMAND)

    def _asks(self, method: str, call: Callable[[], Iterable[Ask]]) -> list[Ask]:
        """The policy's answer. Raises PolicyFailed, naming the policy, where its method raises or gives no Asks."""
        try:
            asks = list(call())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            what = f"policy {self._policy.name}: {method} failed: {type(error).__name__}: {error}"
            raise PolicyFailed(what) from error
        for ask in asks:
            if not isinstance(ask, Ask):
                raise PolicyFailed(f"policy {self._policy.name}: {method} must give Asks, gave {ask!r}")
            if ask.kind not in self._parts or not isinstance(ask.layer, int):
                need = f"a kind of {', '.join(self._parts)} and the number of a layer"
                have = f"{method} asks for {ask.kind!r} of layer {ask.layer!r}"
                raise PolicyFailed(f"policy {self._policy.name}: {have}; need {need}")
        return asks

    def _ask(self, trigger: int, ask: Ask) -> bool:
        """Whether there is such a group in the pass; one for which there is no slot yet can be asked for again."""
        index = self._indices.get((ask.layer, ask.kind))
        if index is None:
            return False
        position = trigger - trigger % len(self._halves) + index
        if self._fits(position, self._computed):
            self._request(position, ask.priority)
        elif not self._warned and not self._fits(position, trigger):
            self._warned = True
            logger.warning(
                "policy %s asks for %s of layer %d, for which there is no slot yet: raise gpu_groups, or ask for fewer",
                self._policy.name, ask.kind, ask.layer,
            )  # fmt: skip
        return True

    def _request(self, position: int, priority: Priority) -> None:
        if position < self._computed or position in self._sent:
            return
        before, age = self._waiting.get(position, (priority, self._age))
        self._waiting[position] = (min(before, priority), age)
        self._age += 1
        self._turns.notify()

    def _fits(self, position: int, computed: int) -> bool:
        """Whether the group can have a slot while those from `computed` on up to it keep theirs (rule 2)."""
        kind = self._slot_kind(position)
        if kind is None:
            return True  # the pass before has computed it
        return self._rank(position, kind) - self._rank(computed, kind) < self._slots[kind]

    def _slot_kind(self, position: int) -> str | None:
        return self._slot_kinds[position % len(self._slot_kinds)]

    def _rank(self, position: int, kind: str) -> int:
        """How many groups with this kind of slot come before a position."""
        pass_, index = divmod(position, len(self._slot_kinds))
        return pass_ * self._earlier[kind][-1] + self._earlier[kind][index]
