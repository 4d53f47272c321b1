"""Which experts of the next layer the store is asked for before its router has chosen."""

from collections import Counter

from actors.core.expert_store import ExpertStore
from pipeline.generation.expert_work import ExpertWork, NextRouter

NEARLY_ALL = 0.85
"""A pass that uses this share of a layer's experts is taken to use those of the next one: the disk need not wait for
its router. Of eight rows that choose two of eight experts four fifths of the layers use as many."""


def ask_ahead(
    store: ExpertStore, work: ExpertWork, layer: int, wanted: int, rows: int, guesses: NextRouter | None
) -> None:
    """Ask for experts of the layer behind one that wants so many experts, for so many rows.

    For those that its tokens need, where that is known; for all where nearly all are needed; else for those that its
    router has chosen for the present state, where it was asked for `guesses`, the likeliest first.
    """
    kind, following = work.kind(layer), work.next_kind(layer)
    if kind is None or following is None:
        return
    next_layer, next_kind = following
    if next_kind.routing.by_token:
        store.hint(next_layer, work.union(next_layer, rows))
    elif wanted >= NEARLY_ALL * kind.count:
        store.hint(next_layer, range(next_kind.count))
    elif guesses is not None:
        _, first = guesses
        ranks = Counter[int]()
        for row in work.ids(kind, rows, first).tolist():
            for rank, index in enumerate(row):
                ranks[index] += kind.chosen - rank
        store.guess(next_layer, [index for index, _ in ranks.most_common()])
