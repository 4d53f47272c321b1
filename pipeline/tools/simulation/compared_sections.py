"""What so many sections make of the time of a pass, cut in three ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.engine.dealing import Share, deal, hops, pass_seconds
from pipeline.engine.residency import Residency, spread
from pipeline.tools.simulation.sim_sections import simulate_sections
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

BYTES_PER_SECOND = 1e9
"""Groups are known by how long they take, and this makes bytes of it."""


@dataclass(frozen=True, slots=True)
class ComparedSections:
    """Seconds from token to token of a request.

    Attributes:
        sections: how many there are.
        hops: how often a pass of the dealt layers changes its section.
        dealt: layers dealt as the engine deals them, one pass with all requests at a time.
        formula: the same by the closed form of `pipeline.engine.dealing`.
        contiguous: layers that follow one another in each section, one pass with all requests at a time.
        in_flight: such layers, and several passes at a time, each with its share of the requests.
    """

    sections: int
    hops: int
    dealt: float
    formula: float
    contiguous: float
    in_flight: float


def compare_sections(
    timings: LayerTimings,
    with_share: LayerTimings,
    sections: int,
    in_flight: int,
    *,
    stays: float = 0.0,
    hop_seconds: float = 0.0,
    shared_disk: bool = False,
    gpu_groups: int = 4,
    host_groups: int | None = None,
    **line: Any,
) -> ComparedSections:
    """Simulate sections that are all alike; `line` as `sim_sections` takes it.

    `with_share` are the times of a pass with one share in `in_flight` of the requests. Each section has room for the
    share `stays` of all weights. Raises ConfigError where there are more sections than layers.
    """
    one_link = timings.one_link
    reading = {key: timings.seconds(DISK, 0, key) * (sections if shared_disk else 1) for key in timings.order}
    uploading = {key: timings.seconds(LINK, 0, key) for key in timings.order}
    from_disk = sum(reading.values()) >= sum(uploading.values())
    sizes = {key: round(seconds * BYTES_PER_SECOND) for key, seconds in (reading if from_disk else uploading).items()}
    layers = [sum(size for (layer, _), size in sizes.items() if layer == one) for one in range(timings.layers)]
    room = int(stays * sum(layers))
    groups = gpu_groups + (0 if one_link or not from_disk else host_groups or gpu_groups)
    shares = [Share(room, BYTES_PER_SECOND, groups * sum(layers) // len(sizes))] * sections
    dealt = deal([*layers, 0], shares, hop_seconds)
    computing = sum(timings.seconds(COMPUTE, 0, key) for key in timings.order)

    def token_seconds(times: LayerTimings, owners: tuple[int, ...], at_a_time: int) -> float:
        kept = _kept(sizes, owners, room)
        return simulate_sections(
            times,
            owners,
            in_flight=at_a_time,
            residency=Residency({"host" if one_link else "device": kept}),
            hop_seconds=hop_seconds,
            shared_disk=shared_disk,
            gpu_groups=gpu_groups,
            host_groups=host_groups,
            recording=False,
            **line,
        ).token_seconds

    following = tuple(layer * sections // timings.layers for layer in range(timings.layers))
    return ComparedSections(
        sections,
        hops(dealt),
        token_seconds(timings, dealt, 1),
        pass_seconds([*layers, 0], dealt, shares, hop_seconds, computing),
        token_seconds(timings, following, 1),
        token_seconds(with_share, following, in_flight),
    )


def _kept(sizes: Mapping[Any, int], owners: tuple[int, ...], room: int) -> tuple[Any, ...]:
    """What stays of each section's groups, chosen as the engine chooses."""
    own = [{key: size for key, size in sizes.items() if owners[key[0]] == one} for one in sorted(set(owners))]
    return tuple(key for groups in own for key in spread(groups, room))
