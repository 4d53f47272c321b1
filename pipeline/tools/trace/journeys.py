"""The way of one group through the line, put together from the spans of the actors that moved and computed it."""

from collections import defaultdict
from collections.abc import Iterable

from actors.core.message import GroupKey
from actors.core.trace import Span
from pipeline.tools.trace.intervals import Interval, union
from pipeline.tools.trace.recording import COMPUTE
from pipeline.tools.trace.sections import plain_names


class Journeys:
    """Finds the work that an actor did on a group, which is moved and computed in one section only.

    A line that runs anew counts `seq` from 0 again: a group's work is the latest that began before the group went on.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        self._work: defaultdict[tuple[str, int, str, int], list[Span]] = defaultdict(list)
        work = [span for span in spans if span.what == "work"]
        names = plain_names({span.actor for span in work})
        for span in work:
            self._work[names[span.actor][0], span.layer, span.group, span.seq].append(span)

    def before(self, actor: str, span: Span) -> Span | None:
        """The latest work of `actor`, whose name has no number, on the group of `span` that began before `span` did."""
        on_group = self._work.get((actor, span.layer, span.group, span.seq), ())
        earlier = [work for work in on_group if work.started <= span.started and work is not span]
        return max(earlier, key=lambda work: work.started, default=None)


def times_of(spans: Iterable[Span], actor: str, *whats: str) -> list[Interval]:
    """Return when an actor had a span that says one of `whats`: "work", or what it waited for."""
    return union((span.started, span.ended) for span in spans if span.actor == actor and span.what in whats)


def computations(spans: Iterable[Span]) -> list[Span]:
    """Return the computations of all sections in the order of their beginnings."""
    work = [span for span in spans if span.what == "work"]
    computing = {actor for actor, (plain, _) in plain_names({span.actor for span in work}).items() if plain == COMPUTE}
    return sorted((span for span in work if span.actor in computing), key=lambda span: span.started)


def pass_starts(computed: Iterable[Span]) -> list[Span]:
    """The computations that began a pass: each pass computes a layer's group once, so it began where one came again."""
    starts: list[Span] = []
    seen: set[GroupKey] = set()
    for span in computed:
        if span.part:
            continue
        if not starts or span.key in seen:
            starts.append(span)
            seen.clear()
        seen.add(span.key)
    return starts
