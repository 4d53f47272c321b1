"""How many experts a pass uses, and how many of them places have not: of recorded routing, or of a guess about it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.core.expert_cache import kept_slots, window_of
from pipeline.tools.routing.recorded_routing import RecordedRouting, RoutedModel
from pipeline.tools.routing.replay_routing import Make, Replayed, Wants, replay_routing

FLAT = "guessed: routing is taken to be flat, as if any expert were chosen as often; --routing FILE knows better"
WARM_TURNS, MEASURED_TURNS = 6, 3
"""In flat routing every expert comes about once in a turn; so many fill caches, so many are counted."""


@dataclass(frozen=True, slots=True)
class ExpertDemand:
    """Experts that passes use in each layer, float [P, L], and what each place has not of them, disk first.

    Of P passes that were replayed, or of one that stands for all. `how` says how that is known.
    """

    used: np.ndarray
    missed: Sequence[np.ndarray]
    how: str

    @property
    def hit_rate(self) -> float:
        """The share of uses that are not read from the disk."""
        return 1 - float(self.missed[0].sum() / self.used.sum())


def recorded_demand(routing: RecordedRouting, slots: Sequence[int], tokens: int, make: Make) -> ExpertDemand:
    """By replay of the model's own routing, with so many tokens a pass; counted from the half on, when caches are warm.

    The decoding of several requests at once is put together of as many parts of the recording.
    """
    wants = Wants.of(_side_by_side(routing, tokens))
    replayed = replay_routing(wants, slots, make)
    what = f"{routing.decoded_tokens:,} recorded tokens of {routing.model.name}, replayed"
    return _counted(replayed, len(wants.unions) // 2, what)


def flat_demand(model: RoutedModel, slots: Sequence[int], tokens: int, make: Make) -> ExpertDemand:
    """By replay of routing that chooses any expert as often."""
    wants = _flat_wants(model, tokens)
    measured = len(wants.unions) * MEASURED_TURNS // (WARM_TURNS + MEASURED_TURNS)
    return _counted(replay_routing(wants, slots, make), len(wants.unions) - measured, FLAT)


@functools.lru_cache(maxsize=2)
def _flat_wants(model: RoutedModel, tokens: int) -> Wants:
    random, chosen = np.random.default_rng(0), model.chosen
    passes = (WARM_TURNS + MEASURED_TURNS) * -(-model.experts // (chosen * tokens))
    shape = (len(model.layers), model.experts)
    ids = [np.argpartition(random.random(shape), chosen - 1, axis=1)[:, :chosen] for _ in range(passes * tokens)]
    rows = np.full(passes, tokens, np.int32)
    return Wants.of(RecordedRouting(model, rows, np.zeros(len(ids), np.uint8), np.stack(ids)))


def scaled_demand(
    routing: RecordedRouting, model: RoutedModel, slots: Sequence[int], tokens: int, make: Make
) -> ExpertDemand:
    """By how much more caches find of another model's routing than they would of flat routing.

    That is looked up where it was recorded at the same share of all experts, which is right for experts that are used
    more often than others, and at the same multiple of what a token uses, which is right for experts that are used
    again soon; their mean counts. For models of one shape they are the same.
    """
    flat, other = flat_demand(model, slots, tokens, make), routing.model
    layers = len(other.layers) / len(model.layers)
    factors = (layers * other.experts / model.experts, layers * other.chosen / model.chosen)
    wants = Wants.of(_side_by_side(routing, tokens))
    missed, rates = [], []
    for place, misses in enumerate(flat.missed):
        known, most = 1 - float(misses.sum() / flat.used.sum()), max(slots[place:])
        gains = [_gain(wants, round(most * factor), make) for factor in factors]
        rates.append(sorted(known + (1 - known) * gain for gain in gains))
        missed.append(flat.used * (1 - sum(rates[-1]) / len(gains)))
    low, high = rates[0]
    between = f"{low:.0%}" if high - low < 0.005 else f"{low:.0%} to {high:.0%}"
    how = (
        f"guessed: {between} are found in memory, by what {routing.decoded_tokens:,} recorded tokens of {other.name}, "
        f"another model, gain over flat routing with as large a share of all experts and with as many tokens' experts"
    )
    return replace(flat, missed=missed, how=how)


def _gain(wants: Wants, slots: int, make: Make) -> float:
    """What a cache finds of that which one of flat routing would miss."""
    experts = len(wants.model.layers) * wants.model.experts
    if (slots := max(2, slots)) >= experts:
        return 1.0
    flat = kept_slots(slots, experts, window_of(wants.model.expert_bytes)) / experts
    found = _counted(replay_routing(wants, [slots], make), len(wants.unions) // 2, "")
    return (found.hit_rate - flat) / (1 - flat)


def _counted(replayed: Replayed, first: int, how: str) -> ExpertDemand:
    """The passes that decode, from one on."""
    counted = np.flatnonzero(replayed.wants.decoding[first:]) + first
    used = (replayed.hits[-1] + replayed.misses[-1])[counted].astype(float)
    return ExpertDemand(used, [misses[counted].astype(float) for misses in replayed.misses], how)


def _side_by_side(routing: RecordedRouting, tokens: int) -> RecordedRouting:
    """Decoding alone, so many tokens of it in each pass: from as many places of the recording."""
    decoded = routing.ids[routing.from_prompt == 0]
    passes = len(decoded) // tokens
    if tokens == 1 or not passes:
        return routing
    ids = decoded[: passes * tokens].reshape(tokens, passes, *decoded.shape[1:]).swapaxes(0, 1)
    rows = np.full(passes, tokens, np.int32)
    return RecordedRouting(routing.model, rows, np.zeros(len(decoded), np.uint8), ids.reshape(-1, *decoded.shape[1:]))
