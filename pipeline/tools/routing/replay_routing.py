"""Replays recorded routing through caches of any size: the store's own decisions, without slots and time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.core.expert_cache import (
    EvictionPolicy,
    Expert,
    ExpertCache,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    Pinned,
    kept_slots,
    request,
    streams,
    window_of,
)
from pipeline.tools.routing.belady import Belady
from pipeline.tools.routing.recorded_routing import RecordedRouting, RoutedModel


@dataclass(frozen=True, slots=True)
class Wants:
    """What every pass wants of each layer: `unions` by pass and place of the layer, each rising.

    `streamed` [P, L] tells what comes in order, as for prompts, and evicts nothing; `decoding` [P] which passes compute
    tokens that decoding has chosen, of which there are `tokens`.
    """

    model: RoutedModel
    unions: Sequence[Sequence[Sequence[int]]]
    streamed: np.ndarray
    decoding: np.ndarray
    tokens: int

    @classmethod
    def of(cls, routing: RecordedRouting) -> "Wants":
        """The unions of recorded passes."""
        passes = list(routing.passes())
        unions = [one.unions() for one in passes]
        experts = routing.model.experts
        streamed = np.array([[streams(len(union), experts) for union in layers] for layers in unions])
        decoding = np.array([not one.only_prompts for one in passes])
        return cls(routing.model, unions, streamed, decoding, routing.decoded_tokens)

    def uses(self, layers: Sequence[int]) -> Iterator[Expert]:
        """All uses that a policy is told of, in these layers."""
        places = [place for place, layer in enumerate(self.model.layers) if layer in layers]
        for pass_, unions in enumerate(self.unions):
            for place in places:
                if not self.streamed[pass_, place]:
                    yield from ((self.model.layers[place], index) for index in unions[place])


Make = Callable[[Wants, Sequence[int], int], EvictionPolicy | None]
"""Makes the policy of a cache for some layers, that holds so many experts."""


def _pins(wants: Wants, layers: Sequence[int], capacity: int) -> EvictionPolicy:
    return Pinned([expert for expert, _ in Counter(wants.uses(layers)).most_common(capacity)])


REPLAYED: Mapping[str, Make] = {
    "lru": lambda *_: LeastRecentlyUsed(),
    "lfu": lambda *_: LeastFrequentlyUsed(),
    "pins": _pins,
    "none": lambda *_: None,
    "belady": lambda wants, layers, _: Belady(wants.uses(layers)),
}
"""Policies by name. Pins are those that the recording itself uses most, and Belady knows it to its end: no run can."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many experts each place had and had not of those that it was asked for: int [P, L], a place each, disk first.

    What the last one has not is asked of the one before. What the first has not is read.
    """

    wants: Wants
    hits: Sequence[np.ndarray]
    misses: Sequence[np.ndarray]

    def hit_rate(self, place: int = -1) -> float:
        """Of what passes that decode ask of a place, the share that it had; 0 where they ask nothing."""
        hits, misses = (int(counts[place][self.wants.decoding].sum()) for counts in (self.hits, self.misses))
        return hits / max(hits + misses, 1)

    @property
    def read_per_token(self) -> float:
        """Experts that are read for each token of decoding."""
        return int(self.misses[0][self.wants.decoding].sum()) / max(self.wants.tokens, 1)


def replay_routing(
    wants: Wants, slots: Sequence[int], make: Make, *, window: int | None = None, per_layer: bool = False
) -> Replayed:
    """Replay through places of so many slots, disk first; each has them for all layers together, or shared out.

    As many as a run has for what moves keep nothing, unless a `window` says how many.
    """
    model = wants.model
    window = window_of(model.expert_bytes) if window is None else window
    experts = len(model.layers) * model.experts
    kept = [kept_slots(one, experts, window) for one in slots]
    parts = [[layer] for layer in model.layers] if per_layer else [model.layers]
    caches: dict[int, list[ExpertCache]] = {}
    for part in parts:
        capacities = [one // len(parts) for one in kept]
        places = [ExpertCache(one, make(wants, part, one)) for one in capacities]
        caches |= dict.fromkeys(part, places)
    counts = np.zeros((2, len(slots), *wants.streamed.shape), np.int64)
    for pass_, unions in enumerate(wants.unions):
        for place, (layer, union) in enumerate(zip(model.layers, unions, strict=True)):
            found = request(caches[layer], layer, union, streamed=bool(wants.streamed[pass_, place]))
            for which, one in enumerate(found):
                counts[:, which, pass_, place] = len(one.hits), len(one.misses)
    return Replayed(wants, *counts)
