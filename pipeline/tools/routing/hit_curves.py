"""How many experts caches of several sizes and policies find of recorded routing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.tools.routing.replay_routing import REPLAYED, Replayed, Wants, replay_routing

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of all experts, unless sizes are given."""
PER_LAYER = "lru per layer"
SHOWN = ("lru", PER_LAYER, "lfu", "pins", "belady")


@dataclass(frozen=True, slots=True)
class HitCurves:
    """Of each of `SHOWN`, what a cache of each of the `slots`, rising, finds."""

    wants: Wants
    slots: Sequence[int]
    replays: Mapping[str, Sequence[Replayed]]

    def hit_rates(self, name: str) -> list[float]:
        """By size."""
        return [one.hit_rate() for one in self.replays[name]]

    @property
    def per_layer_gain(self) -> float:
        """How much more is found in the mean over the sizes where slots are each layer's own."""
        rates = zip(self.hit_rates(PER_LAYER), self.hit_rates("lru"), strict=True)
        return sum(own - shared for own, shared in rates) / len(self.slots)


def default_slots(wants: Wants) -> list[int]:
    """The sizes of `SHARES`."""
    experts = len(wants.model.layers) * wants.model.experts
    return sorted({max(2, round(share * experts)) for share in SHARES})


def hit_curves(wants: Wants, slots: Sequence[int], progress: Callable[[str], None] = lambda _: None) -> HitCurves:
    """Replay all; the caller is told of each policy when it begins."""
    replays = {}
    for name in SHOWN:
        progress(f"replaying {wants.streamed.size:,} requests of layers, {name}")
        make, per_layer = REPLAYED[name.removesuffix(" per layer")], name == PER_LAYER
        replays[name] = [replay_routing(wants, [one], make, per_layer=per_layer) for one in slots]
    return HitCurves(wants, slots, replays)
