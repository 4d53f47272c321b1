"""Actors may ask this of the world. Protocols only: no torch, files, threads or clocks here (rule 5)."""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from actors.core.budget import Slot
from actors.core.event import Buffer, Event
from actors.core.message import GroupKey, Message, ended


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes that travel together, from a host slot to a device slot or inside a slot."""

    source_offset: int
    target_offset: int
    length: int


class Transfers(Protocol):
    """A device copies for the actors between its memory and host memory.

    Uploads run in order, downloads too, and one kind beside the other. A copy starts after all events in `after`, which
    are events of this device, or done, or chained of such ones. If one failed, the copy does not run and fails alike.
    """

    def upload(
        self,
        source: Buffer,
        target: Buffer,
        copies: Sequence[Copy],
        after: Sequence[Event],
        vacant: Event | None = None,
    ) -> Event:
        """Copy host memory into device memory, also after `vacant`, however that ended: it only frees `target`."""

    def download(self, source: Buffer, target: Buffer, copies: Sequence[Copy], after: Sequence[Event]) -> Event:
        """Copy device memory into host memory."""


class WeightSource(Protocol):
    """Where weights come from."""

    def read_into(self, key: GroupKey, buffer: Buffer) -> Coroutine[Any, Any, None]:
        """Read one group into a host slot. Ends, also when cancelled, only once nothing writes into `buffer`."""


class Perhaps(Protocol):
    """A read ahead of bytes that are perhaps wanted.

    Attributes:
        begun: the source sets it when it begins to read.
        wanted: whether the bytes are wanted; None until that is known.
        decided: the source sets it, to be called when that is known.
    """

    begun: bool
    wanted: bool | None
    decided: Callable[[], None]

    def goes_on(self) -> bool:
        """Whether it may still be wanted. Any thread may ask."""


class IdleSource(WeightSource, Protocol):
    """Where weights come from, also while nobody needs any."""

    def read_while_idle(self, key: GroupKey, buffer: Buffer, guess: Perhaps) -> Coroutine[Any, Any, None]:
        """As `read_into`, but behind all that is wanted until the guess is decided; a wrong one is not read on.

        An error is raised only once the guess is right; where it is wrong, the read ends without one.
        """


class Catalog(Protocol):
    """Knows every group before any byte moves."""

    def kind(self, key: GroupKey) -> str:
        """The kind of slot that the group needs."""

    def copies(self, key: GroupKey) -> Sequence[Copy]:
        """Say what to copy from a host slot into a device slot."""

    def tensors(self, message: Message[Slot]) -> Mapping[str, Any]:
        """The group's tensors by short name, as views of its slot, after its event. Raises LineError without bytes."""


Waits: TypeAlias = Literal["blocking", "event", "chained"]
"""How a group's computation waits for its bytes: the host sees the device idle and the group there, and checks it in;
the host waits for the group's event; or the device waits, and the host goes on."""


class Priority(IntEnum):
    """Which group goes first on the link; within one priority, the one that was asked for first."""

    DEMAND = 0
    HIGH = 1
    MEDIUM = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """One group that a policy wants: the part of a layer that is its `kind`.

    Slices of the head follow the last layer, each as the last part of one more, whatever kind of slot it needs.
    """

    kind: str
    layer: int
    priority: Priority = Priority.MEDIUM


@dataclass(frozen=True, slots=True)
class Half:
    """A half-layer whose computation has just started; `held` groups move, wait or compute on the device."""

    kind: str
    layer: int
    held: int


@runtime_checkable
class PrefetchPolicy(Protocol):
    """Says what to ask for while the device computes, and how to wait. Pure: it holds no state and asks no clock."""

    @property
    def name(self) -> str:
        """The name that people call it by."""

    @property
    def triggered(self) -> bool:
        """Whether groups are asked for at triggers. If not, they travel in compute order, on into the next pass."""

    @property
    def waits(self) -> Waits:
        """How computations wait for their groups."""

    @property
    def fallback_seconds(self) -> float | None:
        """How long an upload's event may be overdue before the group is loaded again; None waits for ever."""

    @property
    def micro_batches(self) -> int:
        """Into how many parts a pass is cut, the ffn of one computed beside the attention of another."""

    @property
    def kv_ahead(self) -> bool:
        """Whether KV blocks of a layer are asked for when the layer before starts, not when it has ended."""

    def fit(self, slots: Mapping[str, int]) -> "PrefetchPolicy":
        """The same policy, never asking for more groups of a kind than there are slots of that kind."""

    def warmup(self) -> Sequence[Ask]:
        """Say what to ask for before the first pass."""

    def at_start(self, half: Half) -> Sequence[Ask]:
        """Say what to ask for, in this order, at the moment when the computation of a half-layer starts."""


class Program(Protocol):
    """The compute scheduler runs it. One pass is one sweep over all groups, in compute order.

    A class that inherits from it need write `order`, `begin`, `step` and `finish` only.
    """

    order: Sequence[GroupKey]
    """Layer and name of every group of a pass, in compute order."""
    hops: Collection[GroupKey] = ()
    """The groups before which a pass comes from another line, that computes what comes before them."""
    apart: Collection[GroupKey] = ()
    """The groups that are never part of a stretch: in the middle of each the host waits."""

    async def begin(self) -> Any:
        """Wait until there is work, and return the state of one pass over it."""

    async def arrive(self, pass_: Any, message: Message[Slot], /) -> None:
        """Wait until the pass has come to this group, one of the `hops`."""
        return

    def prepare(self, pass_: Any, message: Message[Slot], /) -> Coroutine[Any, Any, None] | None:
        """Wait until the companion bytes that the group's computation needs are on their way; None if they are."""
        return None

    async def check_in(self, pass_: Any, message: Message[Slot], /) -> None:
        """Wait, on the host, until the device is idle and the group there. Only blocking policies ask for it."""
        await ended(message.event)

    def step(self, pass_: Any, message: Message[Slot], /) -> Sequence[Event]:
        """Launch the computation of one group, micro-batch by micro-batch; the last event frees the group's slot.

        The computation is launched behind `message.event`, the arrival of the group's bytes (rule 4). The answer is
        empty where nothing is launched, as for a group that no request needs.
        """

    def stretch(self, pass_: Any, messages: Sequence[Message[Slot]], /) -> Sequence[Event]:
        """Launch, as one piece of work, groups that stay and follow one another: the same of them in every pass.

        Their bytes have arrived, and nobody waits for one of them alone. The answer is empty where nothing is
        launched: then each gets its `prepare` and its `step`.
        """
        return ()

    def ahead(self, pass_: Any, /) -> Any | None:
        """Begin the next pass behind a pass whose groups are all launched, before the results of that are known.

        None where the next pass depends on these results. Every pass before this one is finished; this one is finished
        when the next one is launched, too.
        """
        return None

    async def finish(self, pass_: Any, /) -> None:
        """Wait for the results of the pass and hand them on."""
