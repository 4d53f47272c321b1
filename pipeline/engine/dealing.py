"""Which section, a device or a node, computes each layer, and how long a pass takes then. Pure, and chosen once.

A pass stands in one section at a time, and meanwhile the links of the others go on only until their slots are full. So
layers that stream are dealt in turn: then every link works all the time, and a pass takes as long as all bytes that
move take over all links together. Where everything stays, each section gets layers that follow one another, as every
change of section costs a hop.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import ConfigError

STEPS = 50
"""Halvings, by which a share is found more exactly than to a byte."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a section can do for a pass.

    Attributes:
        room_bytes: weights that stay where they are computed.
        bytes_per_second: the rate at which all others come, of its link or of its share of a disk.
        slot_bytes: what its slots hold of those that come.
    """

    room_bytes: int
    bytes_per_second: float
    slot_bytes: int


def deal(
    layer_bytes: Sequence[int],
    shares: Sequence[Share],
    hop_seconds: float = 0.0,
    *,
    joined: Collection[int] = (),
) -> tuple[int, ...]:
    """The section of each layer, of which the last is the head: those with which a pass takes the least time.

    The first section has the first layer, and each has at least one beside the head. Runs of layers in one section are
    as long as hops need that take so many seconds. Layers that are `joined` to the one before are dealt with it.
    Raises ConfigError where there are more sections than layers, or runs of joined ones.
    """
    layers = len(layer_bytes) - 1
    if not 0 < len(shares) <= layers - len(joined):
        each = (
            f"of the {layers - len(joined)} runs of layers that need each other"
            if joined
            else f"of the model's {layers} layers"
        )
        raise ConfigError(f"devices: need at most one for each {each}, have {len(shares)}")
    if joined:
        firsts = [layer for layer in range(len(layer_bytes)) if layer not in joined]
        counts = [end - first for first, end in itertools.pairwise([*firsts, len(layer_bytes)])]
        of_runs = [sum(layer_bytes[first : first + count]) for first, count in zip(firsts, counts, strict=True)]
        dealt = deal(of_runs, shares, hop_seconds)
        return tuple(section for section, count in zip(dealt, counts, strict=True) for _ in range(count))
    wanted = wanted_bytes(sum(layer_bytes), shares)
    # Slots for a layer, or half of them, are left over, so that a link goes on while that layer computes.
    layer = max(layer_bytes[:-1])
    spared = [replace(one, slot_bytes=max(one.slot_bytes // 2, one.slot_bytes - layer)) for one in shares]
    heads = (None, *range(len(shares)))
    runs = range(1, -(-layers // len(shares)) + 1)
    found = [_in_turn(layer_bytes, wanted, run, head) for head in heads for run in runs]
    complete = [dealt for dealt in found if len({*dealt[:-1]}) == len(shares)]
    return min(
        [_contiguous(layer_bytes, wanted), *complete],
        key=lambda dealt: (
            pass_seconds(layer_bytes, dealt, shares, hop_seconds),
            pass_seconds(layer_bytes, dealt, spared, hop_seconds),
            _way_seconds(layer_bytes, dealt, spared, hop_seconds),
        ),
    )


def pass_seconds(
    layer_bytes: Sequence[int],
    sections: Sequence[int],
    shares: Sequence[Share],
    hop_seconds: float = 0.0,
    compute_seconds: float = 0.0,
) -> float:
    """How long each of many passes takes, one at a time, that compute for so many seconds in all.

    The longer of two: the busiest link, with all that moves in its section; and the way of the pass, that is its hops
    and, for each run of layers in one section, computing or the bytes that its slots did not hold when the pass came.
    """
    held = _section_bytes(layer_bytes, sections, len(shares))
    links = max(_moving(share, nbytes) / share.bytes_per_second for share, nbytes in zip(shares, held, strict=True))
    return max(links, _way_seconds(layer_bytes, sections, shares, hop_seconds, compute_seconds))


def _way_seconds(
    layer_bytes: Sequence[int],
    sections: Sequence[int],
    shares: Sequence[Share],
    hop_seconds: float,
    compute_seconds: float = 0.0,
) -> float:
    """Hops, computing and waits of a pass that finds all slots full in each section that it comes to.

    Behind the bytes that come late the last layer is still to be computed.
    """
    held = _section_bytes(layer_bytes, sections, len(shares))
    computing = compute_seconds / sum(held)
    seconds = hops(sections) * hop_seconds
    for section, run in _runs(layer_bytes, sections):
        share, nbytes = shares[section], sum(run)
        late = nbytes * _moving(share, held[section]) / held[section] - share.slot_bytes
        seconds += max(late / share.bytes_per_second + computing * max(run), computing * nbytes)
    return seconds


def _moving(share: Share, nbytes: int) -> int:
    """What does not stay of so many bytes in a section."""
    return max(0, nbytes - share.room_bytes)


def hops(sections: Sequence[int]) -> int:
    """How often a pass changes its section, on the way back from the last layer to the first too."""
    return sum(one != other for one, other in itertools.pairwise([*sections, sections[0]]))


def wanted_bytes(whole: int, shares: Sequence[Share]) -> list[float]:
    """The bytes of each section with which all links take equally long; where all may stay, in proportion to room."""
    room, rate = sum(share.room_bytes for share in shares), sum(share.bytes_per_second for share in shares)
    if whole <= room:
        return [whole * share.room_bytes / room for share in shares]
    seconds = (whole - room) / rate
    return [share.room_bytes + seconds * share.bytes_per_second for share in shares]


def _contiguous(layer_bytes: Sequence[int], wanted: Sequence[float]) -> tuple[int, ...]:
    """Layers that follow one another, such that the section that exceeds what it wants by most does so the least."""
    fewest, most = 0.0, max(sum(layer_bytes) / max(1.0, one) for one in wanted)
    dealt = _filled(layer_bytes, [most * one for one in wanted])
    for _ in range(STEPS):
        share = (fewest + most) / 2
        caps = [share * one for one in wanted]
        tried = _filled(layer_bytes, caps)
        held = _section_bytes(layer_bytes, tried, len(wanted))
        if all(nbytes <= cap for nbytes, cap in zip(held, caps, strict=True)):
            dealt, most = tried, share
        else:
            fewest = share
    return dealt


def _filled(layer_bytes: Sequence[int], caps: Sequence[float]) -> tuple[int, ...]:
    """Each section filled up to its cap, one after the other; each gets at least one layer, the last one the rest."""
    layers, last, dealt, held = len(layer_bytes) - 1, len(caps) - 1, list[int](), 0
    section = 0
    for layer, nbytes in enumerate(layer_bytes):
        full = held and held + nbytes > caps[section]
        others_need_it = layers - layer <= last - section and held
        if section < last and layer < layers and (full or others_need_it):
            section, held = section + 1, 0
        dealt.append(section)
        held += nbytes
    return tuple(dealt)


def _in_turn(layer_bytes: Sequence[int], wanted: Sequence[float], run: int, head: int | None) -> tuple[int, ...]:
    """Runs of so many layers, each to the section that is the least full with it.

    So is the head, unless room for it is kept in one section from the first layer on.
    """
    *layers, head_bytes = layer_bytes
    room = [max(1.0, one - head_bytes * (section == head)) for section, one in enumerate(wanted)]
    held, dealt = [0] * len(wanted), list[int]()

    def least_full(nbytes: int, sections: Sequence[int]) -> int:
        return min(sections, key=lambda section: (held[section] + nbytes) / room[section])

    every = range(len(wanted))
    for first in range(0, len(layers), run):
        some = layers[first : first + run]
        empty = [section for section in every if not held[section]]
        last_chance = len(empty) * run >= len(layers) - first
        section = least_full(sum(some), empty if last_chance else every) if first else 0
        held[section] += sum(some)
        dealt += [section] * len(some)
    return (*dealt, least_full(head_bytes, every) if head is None else head)


def _section_bytes(layer_bytes: Sequence[int], sections: Sequence[int], count: int) -> list[int]:
    held = [0] * count
    for section, nbytes in zip(sections, layer_bytes, strict=True):
        held[section] += nbytes
    return held


def _runs(layer_bytes: Sequence[int], sections: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The section and the bytes of each run of layers in one section.

    The last run goes on with the first one of the next pass where one section has both: its slots are not full again.
    """
    pairs = itertools.groupby(zip(sections, layer_bytes, strict=True), key=lambda one: one[0])
    runs = [(section, [nbytes for _, nbytes in run]) for section, run in pairs]
    if len(runs) > 1 and runs[0][0] == runs[-1][0]:
        section, first = runs.pop(0)
        runs[-1] = section, [*runs[-1][1], *first]
    return runs
