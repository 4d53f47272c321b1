"""What an open model says about its experts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from actors.core.expert_counts import HintCounts, Uses
from pipeline.engine.expert_line import ExpertLine


@dataclass(frozen=True, slots=True)
class ExpertsRecord:
    """Experts that layers wanted since the model was opened, each once in a pass, and where they were found.

    Attributes:
        slots: how many slots experts have, by place; with several sections the names of places bear their numbers.
        hits, misses: how many of the experts that a place was asked for it had, and had not. The device is asked first,
            and host memory for the misses of the device.
        layers: hits and misses by place and layer, those of streamed prompts apart.
        wanted, largest: by layer, how many experts a pass wants in the mean, and the most that a pass wanted.
        on_cpu: by layer, how many experts the CPU computed in host memory; the device was not asked for these.
        computed: by place, how many experts were computed there.
        bytes_not_uploaded: the bytes of the experts that the CPU computed.
        bytes_read: the bytes that came from the disk for experts that were wanted.
        bytes_per_token: `bytes_read` for each token that passed through the model.
        hints: what became of experts that were asked for ahead, hints and guesses; `hint_precision` is the useful share
            of those that were sent and are decided, None before the first.
    """

    slots: Mapping[str, int]
    hits: Mapping[str, int]
    misses: Mapping[str, int]
    layers: Mapping[str, Mapping[int, Uses]]
    wanted: Mapping[int, float]
    largest: Mapping[int, int]
    on_cpu: Mapping[int, int]
    computed: Mapping[str, int]
    bytes_not_uploaded: int
    bytes_read: int
    bytes_per_token: float
    hints: HintCounts
    hint_precision: float | None


def experts_record(lines: Sequence[ExpertLine], tokens: int) -> ExpertsRecord:
    """Read all counters now, of the lines of all sections; so many tokens have passed through the model."""
    counted = [line.store.statistics() for line in lines]
    layers = {place: uses for one in counted for place, uses in one.places.items()}
    unions = {layer: union for one in counted for layer, union in one.unions.items()}
    hits, misses = (
        {
            place: sum(getattr(one, name) + getattr(one, f"streamed_{name}") for one in uses.values())
            for place, uses in layers.items()
        }
        for name in ("hits", "misses")
    )
    each = [line.room.catalog.needed_bytes // line.room.count for line in lines]
    read = sum(misses[line.budgets[0].name] * nbytes for line, nbytes in zip(lines, each, strict=True))
    left = [sum(union.on_host for union in one.unions.values()) for one in counted]
    computed = Counter[str]()
    for line, one, on_host in zip(lines, counted, left, strict=True):
        computed[line.budgets[0].name] += on_host
        computed[line.budgets[-1].name] += sum(union.experts for union in one.unions.values()) - on_host
    names = [one.name for one in fields(HintCounts)]
    hints = HintCounts(**{name: sum(getattr(one.hints, name) for one in counted) for name in names})
    decided = hints.useful + hints.wasted
    return ExpertsRecord(
        slots={budget.name: sum(budget.slots.values()) for line in lines for budget in line.budgets},
        hits=hits,
        misses=misses,
        layers=layers,
        wanted={layer: one.experts / one.passes for layer, one in unions.items()},
        largest={layer: one.largest for layer, one in unions.items()},
        on_cpu={layer: one.on_host for layer, one in unions.items()},
        computed=dict(computed),
        bytes_not_uploaded=sum(count * nbytes for count, nbytes in zip(left, each, strict=True)),
        bytes_read=read,
        bytes_per_token=read / max(1, tokens),
        hints=hints,
        hint_precision=hints.useful / decided if decided else None,
    )
