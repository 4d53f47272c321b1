"""The Device port: what a device tells of itself, the memory that it hands out, and the work that it runs."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from actors.core.event import Event
from actors.core.ports import Transfers

if TYPE_CHECKING:
    import torch

    from pipeline.devices.memory import HostMemory, Memory


@dataclass(frozen=True, slots=True)
class Place:
    """One of the memories through which bytes come to where they are computed with.

    Attributes:
        name: what budgets, plans and statistics call it.
        memory_setting: the setting that limits how many of its bytes a model takes.
        groups_setting: the setting that says how many weight groups move through it at a time.
        experts_setting: the setting that says how many experts have a slot there.
        disk_speeds: how many times as fast as a disk computing reads it.
        balanced_tokens: how many tokens it computes in the time in which it reads the weights once.
    """

    name: str
    memory_setting: str
    groups_setting: str
    experts_setting: str
    disk_speeds: int
    balanced_tokens: int


HOST = "host"
"""The name of the place that is host memory, and of the pool that is this machine's."""
ONE_PLACE = (Place(HOST, "host_memory", "gpu_groups", "gpu_experts", disk_speeds=8, balanced_tokens=32),)
TWO_PLACES = (
    Place(HOST, "host_memory", "host_groups", "host_experts", disk_speeds=8, balanced_tokens=32),
    Place("device", "gpu_memory", "gpu_groups", "gpu_experts", disk_speeds=128, balanced_tokens=200),
)
MEMORY_SETTINGS = tuple(place.memory_setting for place in TWO_PLACES)


class Device(Transfers, Protocol):
    """Something that computes. Models know a device by this port only; its siblings in this room have this surface.

    Operations of one lane run in order, and lanes run beside each other. Several devices may be open in one process.
    """

    @property
    def torch_device(self) -> "torch.device":
        """The name that torch has for it."""

    @property
    def places(self) -> Sequence[Place]:
        """The places that bytes come through, in order: disks read into the first, and computing reads the last.

        There is one where computing reads host memory.
        """

    @property
    def alignment_bytes(self) -> int | None:
        """The alignment of tensors that are packed in slots of the last place; None where they lie as in the first."""

    @property
    def block_rows(self) -> int:
        """The rows of a block with `batch_invariant`: as many as it computes in about the time of a few rows."""

    def least_rows(self, dtype: "torch.dtype") -> int:
        """How many rows its kernels must get at least, so that a single one is computed as two or more are."""

    @property
    def repeated_rows(self) -> Sequence[int]:
        """The numbers of rows for which it records work that repeats, in rising order."""

    @property
    def record_bytes(self) -> Mapping[str, int]:
        """What it keeps for each piece of work that it has recorded, by place."""

    @property
    def shares_cores(self) -> bool:
        """Whether computing takes the cores that reading and checksums want too."""

    @property
    def pools(self) -> Mapping[str, str]:
        """Which memory of this machine each place takes from, by name; nothing for a device that is not here."""

    @property
    def loads_later(self) -> Mapping[str, int]:
        """The bytes by place that its libraries add later, when they run."""

    def memory_bytes(self, place: Place) -> tuple[int, int]:
        """The bytes that are free in a place, and all its bytes."""

    def link_bytes_per_second(self) -> float | None:
        """How fast a short copy into the last place is, by measurement; None where there is no link to measure."""

    def touched_bytes(self, pool: str) -> int:
        """How many bytes of the memory that it has handed out occupy this pool by now."""

    def host_memory(self, nbytes: int) -> "HostMemory":
        """Memory of the first place: at a 4096-aligned address, from which uploads run at full rate."""

    def plain_memory(self, nbytes: int) -> "HostMemory":
        """Memory of the first place from which nothing is uploaded: taken only as it is written to."""

    def seen(self, memory: "HostMemory") -> "torch.Tensor":
        """Plain memory that is full by now, as bytes that computations can read where they lie; may take a while.

        Raises ResourceError or ConfigError where they cannot.
        """

    def device_memory(self, nbytes: int) -> "Memory":
        """Memory of the last place: computations can use it, at an address that never changes."""

    def launch(
        self,
        lane: str,
        work: Callable[[], object],
        after: Sequence[Event],
        repeats: Hashable | None = None,
        *,
        short: bool = False,
    ) -> Event:
        """Run `work` on a compute lane, after the events in `after` as in `Transfers`.

        All work that `repeats` the same key on a lane launches the same kernels on the same addresses, whatever lies
        there: a device may record them once, and later launch them without calling `work`. What is `short` launches a
        few kernels, and never waits: a device may do it where it is called.
        """

    async def ended_soon(self, event: Event) -> None:
        """Wait for the end, well or not, of work that takes a fraction of a millisecond, and for which a pass waits."""

    def have_run(self) -> None:
        """Take note that a model has computed on it, so that its libraries are loaded."""

    async def aclose(self) -> None:
        """Wait for what runs, then give back threads and memory."""

    def free(self) -> None:
        """Free all memory that it has handed out; nothing may run."""
