"""Puts the times of each weight group of each pass together from the spans of several actors."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from actors.core.message import GroupKey
from actors.core.order import lanes, layer_parts
from actors.core.trace import Span
from pipeline.tools.trace.intervals import Interval
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

NEVER = float("-inf")


@dataclass(slots=True)
class GroupTimes:
    """One group of one pass: clock seconds.

    Attributes:
        kind: the part of a layer that the group is, or counts as: slices of the head count as the last one.
        layer: ordinal number of the layer, counting on from pass to pass.
        parts: the computation, one stretch for each micro-batch.
        hops: the read, and the upload where there was one.
        began: when the first byte moved; NEVER where no transfer was recorded.
    """

    kind: str
    layer: int
    parts: list[Interval] = field(default_factory=list)
    hops: list[Interval] = field(default_factory=list)
    began: float = NEVER

    @property
    def started(self) -> float:
        """The start of the computation."""
        return self.parts[0][0]

    @property
    def ended(self) -> float:
        """The end of the computation."""
        return self.parts[-1][1]

    @property
    def arrived(self) -> float:
        """The moment at which the bytes were on the device; NEVER where no transfer was recorded."""
        return max((ended for _, ended in self.hops), default=NEVER)


def work_by_actor(spans: Iterable[Span]) -> Mapping[str, list[Span]]:
    """The spans of work, without the waits."""
    work: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.what == "work":
            work[span.actor].append(span)
    return work


def group_times(work: Mapping[str, Sequence[Span]], order: Sequence[GroupKey]) -> dict[int, GroupTimes]:
    """Return all groups by their position in compute order, which counts on from pass to pass over `order`.

    `seq` is the position in the plan, which is another one for policies with triggers, so it only tells which transfer
    belongs to which computation.
    """
    groups: dict[int, GroupTimes] = {}
    by_seq: dict[int, GroupTimes] = {}
    layers = {layer: index for index, layer in enumerate(dict.fromkeys(layer for layer, _ in order))}
    kinds = lanes(order)

    def new(position: int) -> GroupTimes:
        pass_, index = divmod(position, len(order))
        return GroupTimes(kinds[order[index]], pass_ * len(layers) + layers[order[index][0]])

    for position, span in _positions(work[COMPUTE], order):
        group = groups.setdefault(position, new(position))
        group.parts.append((span.started, span.ended))
        by_seq[span.seq] = group
    transfers = sorted((*work[DISK], *work[LINK]), key=lambda span: span.seq)
    instant = dict.fromkeys(_instant(groups, order))
    unclaimed: defaultdict[GroupKey, dict[int, None]] = defaultdict(dict)
    for span in transfers:
        if span.seq not in by_seq:
            unclaimed[span.key][span.seq] = None
    for position in instant:
        groups[position] = new(position)
        if seqs := unclaimed[order[position % len(order)]]:
            seq = next(iter(seqs))
            del seqs[seq]
            by_seq[seq] = groups[position]
    _add_transfers(by_seq, transfers)
    moment = min((span.started for spans in work.values() for span in spans), default=0.0)
    for position in sorted(groups):
        if position in instant:
            moment = max(moment, groups[position].arrived)
            groups[position].parts.append((moment, moment))
        moment = groups[position].ended
    return groups


def _positions(spans: Iterable[Span], order: Sequence[GroupKey]) -> Iterator[tuple[int, Span]]:
    """Computations are recorded in compute order, so a new pass begins where the order goes back."""
    indices = {key: index for index, key in enumerate(order)}
    latest: dict[int, int] = {}
    for span in spans:
        if (index := indices.get(span.key)) is not None:
            before = latest.get(span.part, -1)
            position = before // len(order) * len(order) + index
            latest[span.part] = position if position > before else position + len(order)
            yield latest[span.part], span


def _instant(groups: Mapping[int, GroupTimes], order: Sequence[GroupKey]) -> list[int]:
    """Positions of half-layers whose computation took no time, so that no span tells of it."""
    passes, parts = max(groups, default=-1) // len(order) + 1, layer_parts(order)
    return [
        position
        for position in range(min(groups, default=0) // len(order) * len(order), passes * len(order))
        if position not in groups and order[position % len(order)][1] in parts
    ]


def _add_transfers(by_seq: Mapping[int, GroupTimes], transfers: Iterable[Span]) -> None:
    """Reads may be queued, and the disk serves them in call order: one begins to move when the one before has ended."""
    disk_free = NEVER
    for span in transfers:
        if span.seq in by_seq:
            by_seq[span.seq].hops.append((span.started, span.ended))
            if span.actor == DISK:
                by_seq[span.seq].began = min(max(span.started, disk_free), span.ended)
        if span.actor == DISK:
            disk_free = max(disk_free, span.ended)
