"""Durations in a simulated run."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actors.core.message import GroupKey
from pipeline.formats.parts import LAYER_PARTS
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

Order = Sequence[GroupKey]


class Timings(Protocol):
    """Seconds by actor, pass, layer and group. Asking twice gives the same answer."""

    @property
    def order(self) -> Order:
        """Layer and name of every group of a pass, in compute order."""

    @property
    def one_link(self) -> bool:
        """True where a group moves from the disk to the device in one hop, in the seconds of its read."""

    @property
    def check_seconds(self) -> float:
        """The seconds that the host needs to check a group in."""

    @property
    def kv_seconds(self) -> float:
        """The seconds that the KV blocks of a layer take to come, and its new rows to go."""

    def begin_seconds(self, pass_: int) -> float:
        """Return the seconds from the end of the pass before until the host has something to compute."""

    def seconds(self, actor: str, pass_: int, key: GroupKey) -> float:
        """DISK: from the disk into host memory. LINK: from there to the device. COMPUTE: all micro-batches together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimings:
    """The times of a layer, in seconds: compute, transfer to the device, and, where it is a hop of its own, the disk.

    Every layer is alike, or like one of `unlike`, which take turns; the times here are their means then.
    With a `jitter` (coefficient of variation) each time is drawn from a log-normal distribution around its value,
    the same for every policy with the same `seed`.
    """

    layers: int
    attn: float
    ffn: float
    attn_io: float
    ffn_io: float
    attn_disk: float = 0.0
    ffn_disk: float = 0.0
    check_seconds: float = 0.0
    kv_seconds: float = 0.0
    jitter: float = 0.0
    seed: int = 0
    unlike: Sequence["LayerTimings"] = ()
    order: Order = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = tuple((layer, group) for layer in range(self.layers) for group in LAYER_PARTS)
        object.__setattr__(self, "order", order)

    @property
    def one_link(self) -> bool:
        """True without a disk hop."""
        return not (self.attn_disk or self.ffn_disk)

    def begin_seconds(self, pass_: int) -> float:
        """There is always work."""
        return 0.0

    def seconds(self, actor: str, pass_: int, key: GroupKey) -> float:
        """Draw the seconds around those of an attn or an ffn. An only hop is the disk's."""
        one = self.unlike[key[0] % len(self.unlike)] if self.unlike else self
        if actor == COMPUTE:
            what, means = "compute", (one.attn, one.ffn)
        elif actor == DISK and not self.one_link:
            what, means = "disk", (one.attn_disk, one.ffn_disk)
        elif actor == LINK and self.one_link:
            return 0.0
        else:
            what, means = "io", (one.attn_io, one.ffn_io)
        mean = means[LAYER_PARTS.index(key[1])]
        if not self.jitter:
            return mean
        sigma = math.sqrt(math.log1p(self.jitter**2))
        normal = random.Random(f"{self.seed} {what} {pass_} {key[0]} {key[1]}").gauss(0.0, 1.0)
        return mean * math.exp(sigma * normal - sigma**2 / 2)
