"""How a line runs, whatever it computes: frozen, keyword-only, every number checked before any work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from actors.core.expert_cache import EVICTION, EvictionPolicy
from actors.core.ports import PrefetchPolicy
from actors.core.stage import Mover, Stage
from pipeline.engine.actor_names import ACTORS, KV_ACTORS
from pipeline.engine.device_names import DeviceName, device_name, device_names
from pipeline.engine.policies import find_policy
from pipeline.errors import ConfigError, shown, unknown_name
from pipeline.reading.reading import WAYS
from pipeline.system.sizes import parse_bytes

FEWEST_GROUPS = 4
"""That move at a time where no setting says how many."""
MOST = 1 << 30
NEED_STAGES = "need a list of instances of Stage or Mover, or of what makes one"
EVICTION_METHODS = ("use", "remove", "victims")
LONGEST_QUEUE = 1024

Own = Stage | Mover | Callable[[], Stage | Mover]
"""An actor of the user's, or what makes one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of a line that computes anything. Raises ConfigError for a value that can never work.

    Attributes:
        device: "auto" (a GPU where there is one), "cpu", "cpu-copy" (copying each group as for a GPU), "cuda" or "gpu",
            or the GPU that CUDA calls "cuda:1".
        devices: several of one kind, each of which computes some of the layers: a list of names as for `device`,
            or text with commas between them, or "all" GPUs. What is said of groups, experts and `gpu_memory` counts for
            each; `host_memory` is divided among them.
        policy: what is prefetched when: the name of a prefetch policy, or an object that is one. Of the named ones all
            but "backpressure" need groups whose parts are "attn" and "ffn", as those of models are.
        gpu_groups: weight groups that move, wait or compute on the device; this is what bounds the prefetch depth. None
            is 4, and more where a model's groups are so small that the link to a GPU, or the disk of a CPU, would wait
            for slots.
        host_groups: weight groups in pinned host memory; without effect on the CPU, whose memory is one.
        queues: messages that may wait in front of an actor, by its name: disk_reader, pinned_stager, gpu_uploader or
            compute_scheduler. By default as many as `gpu_groups`, so that slots, not queues, bound the depth.
        insert: your own stages, by the name of the actor that they follow: prefetch_planner, disk_reader, pinned_stager
            or gpu_uploader. A group that stays passes them once. Several devices need classes, or functions that make a
            stage, as each gets its own.
        gpu_memory: what to stay within on the device: bytes, a size as "10GiB" or "8G", or a share as "80%" of its
            memory; None is all there is.
        host_memory: the same in host memory, of which a share is one of what the machine (or its control group) leaves
            this process. On the CPU the two are one, and this one counts.
        gpu_experts: experts, of all layers together, that have a slot where they are computed; those that do not move
            or compute stay there until room is needed. None is what all else leaves, at least 16. One slot is enough.
        host_experts: the same in pinned host memory; without effect on the CPU, whose memory is one.
        expert_cache: which expert gives up its slot: "lru" the one that was used longest ago, "lfu" least often, "none"
            each at once; or a class of yours that is an `EvictionPolicy`.
        lookahead: whether the router of the next layer is asked beforehand, where its group stays, and what it would
            choose is read while the disk stands still. It is often right; where it is not, that stops by itself. "auto"
            does that where experts come from the disk, while passes with it take no longer than those without, of
            which some are timed now and then.
        cpu_experts: whether the CPU computes experts that a GPU has not, from their slots in host memory, in passes of
            at most 64 rows; "auto" those with which a layer ends earlier, by the rates of the link and of the CPU, and
            True all. Log-probabilities then depend, in their last digits, on where an expert was computed.
        residency: whether memory that the plan leaves holds weight groups for good, so that fewer of them move. Where
            no limit is set, a tenth of what there is stays free.
        reader_lanes: reads in flight at a time. None here, and in the next three, is what a measurement at open finds
            best; where lanes and chunks are given nothing is measured.
        chunk_bytes: how much one read asks for, a multiple of 4096 bytes, or a size as "8MiB".
        reader_way: how the disk is read, "preadv" or "aiofiles".
        direct_reads: whether reads go past the page cache.
        checksums: whether weights that are read again are compared with their first read, so that damage on the disk
            stops the answer instead of changing it. None compares them with a GPU, where
            less than 256 MiB move per pass, and on a CPU where it is estimated to cost at most 2 % of a pass.
    """

    device: DeviceName | str = "auto"
    devices: Sequence[str] | str | None = None
    policy: str | PrefetchPolicy = "backpressure"
    gpu_groups: int | None = None
    host_groups: int = 4
    queues: Mapping[str, int] = field(default_factory=dict)
    insert: Mapping[str, Sequence[Own]] = field(default_factory=dict)
    gpu_memory: int | str | None = None
    host_memory: int | str | None = None
    gpu_experts: int | None = None
    host_experts: int | None = None
    expert_cache: str | Callable[[], EvictionPolicy] = "lru"
    lookahead: bool | str = "auto"
    cpu_experts: bool | str = False
    residency: bool = True
    reader_lanes: int | None = None
    chunk_bytes: int | str | None = None
    reader_way: str | None = None
    direct_reads: bool | None = None
    checksums: bool | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            if hasattr(value := getattr(self, one.name), "tolist"):  # a number of NumPy or torch
                object.__setattr__(self, one.name, value.tolist())
        object.__setattr__(self, "device", device_name("device", self.device))
        self._check_devices()
        if isinstance(self.chunk_bytes, str):
            object.__setattr__(self, "chunk_bytes", parse_bytes("chunk_bytes", self.chunk_bytes))
        true_or_false("residency", self.residency)
        for name in ("lookahead", "cpu_experts"):
            if not isinstance(value := getattr(self, name), bool) and value != "auto":
                raise ConfigError(f"{name}: need True, False or 'auto', have {shown(value)}")
        find_policy(self.policy)
        within("gpu_groups", self.gpu_groups, 1, 1 << 16, or_none=True)
        within("host_groups", self.host_groups, 1, 1 << 16)
        for name in ("gpu_experts", "host_experts"):
            within(name, getattr(self, name), 1, 1 << 20, or_none=True)
        _check_eviction(self.expert_cache)
        within("reader_lanes", self.reader_lanes, 1, 64, or_none=True)
        within("chunk_bytes", self.chunk_bytes, 4096, MOST, or_none=True)
        if isinstance(self.chunk_bytes, int) and self.chunk_bytes % 4096:
            raise ConfigError(f"chunk_bytes: need a multiple of 4096, have {self.chunk_bytes}")
        if self.reader_way is not None:
            one_of("reader_way", self.reader_way, WAYS)
        for name in ("direct_reads", "checksums"):
            true_or_false(name, getattr(self, name), or_none=True)
        for name in ("gpu_memory", "host_memory"):
            if (value := getattr(self, name)) is not None:
                parse_bytes(name, value, MOST)
        self._check_actors()

    def _check_devices(self) -> None:
        """Several devices by the names that are known everywhere; a single one is `device`."""
        if self.devices is None:
            return
        names = device_names(self.devices)
        if self.device != "auto":
            have = f"device={self.device!r} and devices={shown(self.devices)}"
            raise ConfigError(f"devices: is said beside device; give one of them, have {have}")
        several = isinstance(names, str) or len(names) > 1
        object.__setattr__(self, "devices", names if several else None)
        object.__setattr__(self, "device", "auto" if several else names[0])

    def _check_actors(self) -> None:
        for name, actors in (("queues", ACTORS[1:]), ("insert", ACTORS[:-1])):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name}: need a mapping from actor names, have {getattr(self, name)!r}")
            for actor in getattr(self, name):
                one_of(name, actor, actors, "actor")
        for actor, size in self.queues.items():
            within(f"queues[{actor!r}]", size, 1, LONGEST_QUEUE)
        stages = self.stages()
        for actor, made in stages.items():
            for one in made:
                _own_work(actor, one)
        names = [*ACTORS, *KV_ACTORS, *(one.name for made in stages.values() for one in made)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"insert: two actors are named {name!r}; give one of them another `name`")

    def stages(self) -> dict[str, list[Stage | Mover]]:
        """The user's own actors, of which those that are made are made anew: `of_device` does it once for a line."""
        made: dict[str, list[Stage | Mover]] = {}
        for actor, stages in self.insert.items():
            if not isinstance(stages, Sequence):
                raise ConfigError(f"insert[{actor!r}]: {NEED_STAGES}, have {stages!r}")
            if self.devices is not None and any(isinstance(one, Stage | Mover) for one in stages):
                have = f"have instances for {shown(self.devices)}"
                raise ConfigError(f"insert[{actor!r}]: several devices need the class, or what makes a stage, {have}")
            made[actor] = [_made(actor, one) for one in stages]
        return made

    def of_device(self, device: str) -> Self:
        """The settings of the line of one device, with the user's own actors in it."""
        return replace(self, device=device, devices=None, insert=self.stages())

    def groups(self, setting: str) -> int:
        """How many groups move through a place at a time, by the name of its setting."""
        said: int | None = getattr(self, setting)
        return FEWEST_GROUPS if said is None else said

    @property
    def reading(self) -> dict[str, Any]:
        """Return what is said about how to read: fields of `Reading`."""
        said = {
            "lanes": self.reader_lanes,
            "chunk_bytes": self.chunk_bytes,
            "way": self.reader_way,
            "direct": self.direct_reads,
        }
        return {name: value for name, value in said.items() if value is not None}


def _check_eviction(cache: object) -> None:
    """Refuse what is no name, and what gives no policy when it is called, as each place does."""
    if isinstance(cache, str):
        one_of("expert_cache", cache, [*EVICTION])
        return
    if not callable(cache):
        names = ", ".join(EVICTION)
        raise ConfigError(f"expert_cache: need one of {names}, or a class of eviction policies, have {shown(cache)}")
    try:
        policy = cache()
    except Exception as error:
        raise ConfigError(f"expert_cache: {shown(cache)} failed: {type(error).__name__}: {error}") from error
    lacks = [name for name in EVICTION_METHODS if not callable(getattr(policy, name, None))]
    if lacks:
        raise ConfigError(f"expert_cache: {type(policy).__name__} has no {', '.join(lacks)}; need an EvictionPolicy")


def one_of(setting: str, value: object, known: Sequence[str], what: str = "value") -> None:
    """Raise ConfigError unless the value is one of those that are known."""
    if not isinstance(value, str):
        raise ConfigError(f"{setting}: need one of {', '.join(known)} as text, have {shown(value)}")
    if value not in known:
        raise ConfigError(f"{setting}: {unknown_name(what, value, known)}")


def _made(actor: str, stage: object) -> Stage | Mover:
    """The stage, or what a class or function gives."""
    made = stage
    if not isinstance(stage, Stage | Mover) and callable(stage):
        try:
            made = stage()
        except Exception as error:
            what = f"{shown(stage)} failed: {type(error).__name__}: {error}"
            raise ConfigError(f"insert[{actor!r}]: {what}") from error
    if not isinstance(made, Stage | Mover):
        raise ConfigError(f"insert[{actor!r}]: {NEED_STAGES}, have {shown(made)}")
    return made


def _own_work(actor: str, stage: Stage | Mover) -> None:
    """Refuse what would fail later: a stage without a name to report, or that does not say what it does."""
    what = f"insert[{actor!r}]: {type(stage).__name__}"
    if not isinstance(stage.name, str) or not stage.name:
        raise ConfigError(f"{what} needs a text as its `name`, has {shown(stage.name)}")
    base, method = (Stage, "handle") if isinstance(stage, Stage) else (Mover, "move")
    if getattr(type(stage), method) is getattr(base, method):
        raise ConfigError(f"{what} has no `async def {method}`, which is what a {base.__name__} does with each group")


def within(setting: str, value: object, least: int, most: int, *, or_none: bool = False) -> None:
    """Raise ConfigError unless the value is a whole number in this range."""
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{setting}: need a whole number from {least} to {most}, have {value!r}")


def true_or_false(setting: str, value: object, *, or_none: bool = False) -> None:
    """Raise ConfigError unless the value is a bool."""
    if not isinstance(value, bool) and not (or_none and value is None):
        raise ConfigError(f"{setting}: need True or False, have {value!r}")
