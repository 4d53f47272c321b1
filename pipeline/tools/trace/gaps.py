"""Finds when the device computed nothing, and what it waited for.

A gap lies between the end of all that computed before and the start of the next computation. Its causes are found by
following the group whose computation ended the gap backwards, from what it went through last to what came first:

1. Its weights and KV blocks were there. "start" while the scheduler waited for a request; otherwise "launch": the host
   checked the group in, chose tokens of the pass before, or had not come to launching it.
   "experts" where its layer has some: they were chosen, or came. While some are computed there is no gap.
   "hop" where another section has computed what comes before it in the pass.
2. Its KV blocks came last. "KV", while they or blocks before them were moved.
3. Its weights were on the link. "H2D", from the start of its copy to the end; but "disk", where the disk set the pace:
   reads followed one another without a pause, and the copy began as soon as this one had landed. A faster link would
   have shortened nothing but the way of the first group.
4. They were being read, or compared with what was read before. "disk".
5. A stage of the user's worked on it. "stage".
6. They were read and not on the link yet. "H2D" while the link worked on other groups, otherwise "device slot" while
   the uploader had no slot, otherwise "stage" while a stage worked on other groups.
7. They were not read yet. "disk" while the disk worked on other groups, otherwise "host slot" while the reader had no
   slot, otherwise as in 6: the groups before it were held back there.
8. Whatever is left is "launch": the group had not been asked for, or Python was late.

Each moment has one cause, so that the pieces of a gap follow one another without holes. Where a model has several
sections, a gap is what none of them computes in, and its causes lie in the line of the section that ended it.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from actors.core.trace import Span
from pipeline.engine.actor_names import STAGER
from pipeline.formats.parts import attends
from pipeline.tools.trace.intervals import Interval, union, within, without
from pipeline.tools.trace.journeys import Journeys, computations, pass_starts, times_of
from pipeline.tools.trace.recording import COMPUTE, DISK, EXPERT_COMPUTE, EXPERT_DISK, KV_IN, LINK, OWN
from pipeline.tools.trace.sections import SectionNumber, plain_names, spans_by_section

CAUSES = {
    "disk": ("the disk", "its weights were read, or stood behind other reads"),
    "host slot": ("a host slot", "the reader had no host slot to read into"),
    "H2D": ("the copies to the device", "its weights were copied to the device, or stood behind other copies"),
    "device slot": ("a device slot", "the uploader had no device slot to copy into"),
    "KV": ("KV blocks", "its KV blocks were on their way"),
    "experts": ("experts", "the experts of its layer were chosen, or on their way"),
    "hop": ("hidden states", "its hidden states were handed on from another section"),
    "stage": ("a stage of yours", "a stage of yours worked on it, or on a group before it"),
    "launch": ("the host", "the host had not launched it, had not asked for it, or was loading it again"),
    "start": ("a pass to begin", "there was no request, or its tokens were being looked up"),
}
"""By cause, what the device waited for, and what that means for the group whose computation ended the gap."""
NEGLIGIBLE_SECONDS = 1e-8
"""Ends and starts that should meet may miss each other by the rounding of clocks and files."""
PAUSE_SHARE = 0.05
"""Reads follow one another without a pause if it is no longer than this share of a read."""


@dataclass(frozen=True, slots=True)
class GapPiece:
    """A stretch of a gap, and its cause."""

    cause: str
    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch in which nothing computed; all but the times and the pieces is of the computation that ended it."""

    layer: int
    group: str
    seq: int
    part: int
    started: float
    ended: float
    pieces: tuple[GapPiece, ...]
    section: SectionNumber = None


def find_gaps(spans: Sequence[Span]) -> list[Gap]:
    """Return all gaps of a run, in order. The first begins with the first span of all."""
    lines = {section: _Line(own) for section, own in spans_by_section(spans).items()}
    computed, gaps = computations(spans), list[Gap]()
    names, begin_passes = plain_names({span.actor for span in computed}), set(map(id, pass_starts(computed)))
    busy_until, before = min((span.started for span in spans), default=0.0), None
    experts = deque(_of_experts(spans))
    for span in computed:
        _, section = names[span.actor]
        handed_on = before != section and id(span) not in begin_passes
        while busy_until < span.started:
            expert = experts.popleft() if experts and experts[0].started < span.started else None
            started = span.started if expert is None else expert.started
            if started - busy_until > NEGLIGIBLE_SECONDS:
                pieces = lines[section].causes(span, busy_until, started, handed_on=handed_on)
                gaps.append(Gap(span.layer, span.group, span.seq, span.part, busy_until, started, pieces, section))
            busy_until = max(busy_until, started if expert is None else expert.ended)
        busy_until, before = max(busy_until, span.ended), section
    return gaps


def _of_experts(spans: Sequence[Span]) -> list[Span]:
    """The computations of experts, in the order of their beginnings."""
    names = plain_names({span.actor for span in spans})
    return sorted(
        (span for span in spans if span.what == "work" and names[span.actor][0] == EXPERT_COMPUTE),
        key=lambda span: span.started,
    )


class _Line:
    """An index of when each of the actors did what."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._journeys = Journeys(spans)
        self._reads = times_of(spans, DISK, "work")
        self._read_ends = sorted(span.ended for span in spans if span.actor == DISK and span.what == "work")
        self._copies = times_of(spans, LINK, "work")
        self._no_host_slot = times_of(spans, DISK, "slot")
        self._no_device_slot = times_of(spans, LINK, "slot")
        self._no_request = times_of(spans, COMPUTE, "request")
        self._kv_moves = times_of(spans, KV_IN, "work")
        self._kv_came: defaultdict[int, list[float]] = defaultdict(list)
        for span in sorted(spans, key=lambda span: span.ended):
            if span.actor == KV_IN and span.what == "work":
                self._kv_came[span.layer].append(span.ended)
        self._with_experts = {span.layer for span in spans if span.actor == EXPERT_DISK}
        self._stages = {span.actor for span in spans if span.actor not in OWN}
        self._handled = union(times for stage in self._stages for times in times_of(spans, stage, "work"))

    def causes(self, span: Span, started: float, ended: float, *, handed_on: bool) -> tuple[GapPiece, ...]:
        """Cut a gap before `span`, which was `handed_on` by another section or not, into pieces."""
        gap = _Gap(started, ended)
        nothing = (started, started)
        read_at, landed = self._times_on(DISK, span) or nothing
        copied_at, copied = self._times_on(LINK, span) or nothing
        handled = union(filter(None, (self._times_on(stage, span) for stage in self._stages)))
        compared = list(filter(None, [self._times_on(STAGER, span)]))
        arrived = max([landed, copied, *(ended for _, ended in (*handled, *compared))])
        kv_before = bisect_right(self._kv_came[span.layer], span.started + NEGLIGIBLE_SECONDS)
        kv_came = self._kv_came[span.layer][kv_before - 1] if kv_before else started
        gap.paint("start", self._no_request, since=max(arrived, kv_came))
        experts = span.layer in self._with_experts and not attends(span.group)
        gap.paint("hop" if handed_on else "experts" if experts else "launch", since=max(arrived, kv_came))
        if kv_came > arrived:
            gap.paint("KV", self._kv_moves)
        gap.paint("disk" if self._disk_sets_pace(span) else "H2D", since=copied_at, until=copied)
        gap.paint("disk", since=read_at, until=landed)
        gap.paint("disk", compared)
        gap.paint("stage", handled)
        held_back = (("H2D", self._copies), ("device slot", self._no_device_slot), ("stage", self._handled))
        for cause, times in held_back:
            gap.paint(cause, times, since=landed, until=copied_at)
        for cause, times in (("disk", self._reads), ("host slot", self._no_host_slot), *held_back):
            gap.paint(cause, times, until=read_at)
        gap.paint("launch")
        return gap.pieces()

    def _disk_sets_pace(self, span: Span) -> bool:
        read, copy = self._journeys.before(DISK, span), self._journeys.before(LINK, span)
        if read is None or copy is None:
            return False
        pause = PAUSE_SHARE * (read.ended - read.started)
        compared = self._times_on(STAGER, span) or (0.0, 0.0)
        ready = read.ended + compared[1] - compared[0]
        before = bisect_left(self._read_ends, read.ended)
        disk_was_busy = before > 0 and self._read_ends[before - 1] >= read.started - pause
        waited_for_link = within(self._copies, ready + NEGLIGIBLE_SECONDS, copy.started - NEGLIGIBLE_SECONDS)
        return disk_was_busy and not waited_for_link and copy.started - ready <= pause

    def _times_on(self, actor: str, span: Span) -> Interval | None:
        work = self._journeys.before(actor, span)
        return None if work is None else (work.started, work.ended)


class _Gap:
    """A gap while causes are found for it: what has been painted once keeps its colour."""

    def __init__(self, started: float, ended: float) -> None:
        self._started, self._ended = started, ended
        self._left: list[Interval] = [(started, ended)]
        self._pieces: list[GapPiece] = []

    def paint(
        self, cause: str, times: Sequence[Interval] | None = None, *, since: float = -inf, until: float = inf
    ) -> None:
        """Give a cause to what is left between two moments, and within `times` if given."""
        since, until = max(since, self._started), min(until, self._ended)
        if until - since <= NEGLIGIBLE_SECONDS:
            return
        covered = [(since, until)] if times is None else within(times, since, until)
        for started, ended in covered:
            self._pieces.extend(GapPiece(cause, *part) for part in within(self._left, started, ended))
        self._left = without(self._left, covered)

    def pieces(self) -> tuple[GapPiece, ...]:
        """Return the pieces in order; slivers go to their neighbours, and neighbours of one cause become one."""
        found = sorted(self._pieces, key=lambda piece: piece.started)
        kept = [piece for piece in found if piece.ended - piece.started > NEGLIGIBLE_SECONDS] or found[:1]
        joined: list[GapPiece] = []
        at = self._started
        for index, piece in enumerate(kept):
            ended = kept[index + 1].started if index + 1 < len(kept) else self._ended
            if joined and joined[-1].cause == piece.cause:
                joined[-1] = GapPiece(piece.cause, joined[-1].started, ended)
            else:
                joined.append(GapPiece(piece.cause, at, ended))
            at = ended
        return tuple(joined)
