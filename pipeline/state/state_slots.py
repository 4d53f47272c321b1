"""Which sequence has which slot of recurrent state, and which slots keep snapshots: numbers, no tensors.

A slot holds the state of one sequence behind one position, in every recurrent layer. Unlike KV blocks, a state is
overwritten by each pass, so others can only begin with a copy: a snapshot, found by a digest of all tokens before it.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True)
class HeldState:
    """What a running sequence holds: its `own` slot, which each of its passes writes.

    Its next pass begins with the state in the slot `read`: that of a snapshot, then its own, or -1, zeros. Up to
    `branch` its tokens were known when it came, though no snapshot was. `taking` are the digests and slots of the
    snapshots that the pass under way takes, and `answer` is the latest that was taken of its answer.
    """

    own: int
    read: int
    branch: int = 0
    taking: list[tuple[bytes, int]] = field(default_factory=list)
    answer: tuple[bytes, int] | None = None


class StateSlots:
    """All slots: each is a running sequence's, or keeps a snapshot, or is about to, or is free.

    `requests` sequences always get one. A snapshot stays as long as a sequence is still to begin with it; otherwise the
    least recently used gives way as soon as a slot is needed. So slots that no sequence needs keep snapshots too:
    `snapshots` is how many more there are. `hits` counts sequences that began with one, `evictions` those that gave
    way.
    """

    def __init__(self, requests: int, snapshots: int) -> None:
        self.requests = requests
        self.slots = requests + snapshots
        self.used = 0
        self.hits = 0
        self.evictions = 0
        self._most_pinned = snapshots
        self._free = list(range(self.slots - 1, -1, -1))
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # the digests of snapshots, the least recently used first
        self._found: dict[bytes, int] = {}
        self._pinned: Counter[int] = Counter()  # by slot, the sequences that are still to begin with it

    @property
    def kept(self) -> int:
        """Snapshots that can be found."""
        return len(self._kept)

    def knows(self, digest: bytes) -> bool:
        """Whether there is a snapshot of the state behind all that this is the digest of."""
        return digest in self._found

    def take(self, digest: bytes | None, branch: int = 0) -> HeldState:
        """A slot for a sequence that begins with the snapshot of this digest; with zeros, if that is None.

        Where so many snapshots are pinned that a later sequence might get no slot, it takes over that of its snapshot.
        """
        self.used += 1
        if digest is None:
            return HeldState(self._vacate(), -1, branch)
        self.hits += 1
        slot = self._found[digest]
        if slot not in self._pinned and len(self._pinned) >= self._most_pinned:
            self._drop(slot)
            return HeldState(slot, slot, branch)
        self._kept.move_to_end(slot)
        self._pinned[slot] += 1
        return HeldState(self._vacate(), slot, branch)

    def snapshot(self, held: HeldState, digest: bytes, *, of_answer: bool) -> int | None:
        """A slot for the state that the next pass of this sequence has behind all that this is the digest of.

        None where that is known already, or there is no slot. An answer's newest takes the place of the one before it,
        and no other's: else many answers would drive each other out at every edge, and what prompts share as well.
        """
        if digest in self._found:
            self._kept.move_to_end(self._found[digest])
            return None
        if of_answer and held.answer is not None:
            before, slot = held.answer
            if self._found.get(before) != slot or slot in self._pinned:
                return None
            self._drop(slot)
        elif self._free or self._oldest is not None:
            slot = self._vacate()
        else:
            return None
        if of_answer:
            held.answer = digest, slot
        held.taking.append((digest, slot))
        return slot

    def computed(self, held: HeldState) -> None:
        """Go on with its own state, as the pass has been computed, and let others find the snapshots that it took."""
        self._unpin(held)
        held.read = held.own
        for digest, slot in held.taking:
            if digest not in self._found:
                self._kept[slot], self._found[digest] = digest, slot
            else:
                self._free.append(slot)
                held.answer = None if held.answer == (digest, slot) else held.answer
        held.taking.clear()

    def give_back(self, held: HeldState) -> None:
        """Let go of all that a sequence holds; what its pass was about to take is not known."""
        self._unpin(held)
        self._free += (held.own, *(slot for _, slot in held.taking))
        self.used -= 1

    def hold(self, digest: bytes) -> int | None:
        """The slot of this snapshot, which stays until `let_go`; None where there is none, or too many must stay."""
        slot = self._found.get(digest)
        if slot is None or (slot not in self._pinned and len(self._pinned) >= self._most_pinned):
            return None
        self._pinned[slot] += 1
        return slot

    def expect(self, digest: bytes) -> int | None:
        """A slot for a snapshot that comes from a file, until `arrived` or `let_go`; None where none is needed or free.

        It is pinned as if a sequence were to begin with it, so that those that run get theirs all the same.
        """
        full = len(self._pinned) >= self._most_pinned or not (self._free or self._oldest is not None)
        if digest in self._found or full:
            return None
        slot = self._vacate()
        self._pinned[slot] += 1
        return slot

    def arrived(self, digest: bytes, slot: int) -> None:
        """Let others find a snapshot that has come."""
        if digest not in self._found:
            self._kept[slot], self._found[digest] = digest, slot
        self.let_go(slot)

    def let_go(self, slot: int) -> None:
        """Unpin a snapshot; what is none, or none any more, is free then."""
        self._pinned[slot] -= 1
        if not self._pinned[slot]:
            del self._pinned[slot]
            if slot not in self._kept:
                self._free.append(slot)

    def lose(self, slot: int) -> None:
        """Let no sequence begin any more with what a slot keeps, because it is not known."""
        if slot in self._kept:
            self._drop(slot)
            if slot not in self._pinned:
                self._free.append(slot)

    def forget(self) -> None:
        """Let no snapshot be found any more, because what they hold is not known."""
        for slot in list(self._kept):
            self.lose(slot)

    def _unpin(self, held: HeldState) -> None:
        if held.read in (held.own, -1):
            return
        self.let_go(held.read)

    def _vacate(self) -> int:
        """A slot to be written anew: a free one, else that of the snapshot that was used least recently."""
        if self._free:
            return self._free.pop()
        if (slot := self._oldest) is None:
            raise LookupError(f"no slot of recurrent state is free: {self.used} of {self.slots} are held")
        self._drop(slot)
        self.evictions += 1
        return slot

    @property
    def _oldest(self) -> int | None:
        return next((slot for slot in self._kept if slot not in self._pinned), None)

    def _drop(self, slot: int) -> None:
        del self._found[self._kept.pop(slot)]
