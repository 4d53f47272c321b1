"""How a model is run: frozen, keyword-only, every number checked before any work."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from actors.core.ports import PrefetchPolicy
from actors.core.stage import Mover, Stage
from pipeline.engine.policies import find_policy
from pipeline.engine.wiring import ACTORS, KV_ACTORS
from pipeline.errors import ConfigError, shown, unknown_name
from pipeline.reading.reading import WAYS
from pipeline.system.memory import free_disk_bytes
from pipeline.system.sizes import parse_bytes

Device = Literal["auto", "cpu", "cpu-copy", "cuda"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
DEVICES: tuple[str, ...] = get_args(Device)
DTYPES: tuple[str, ...] = get_args(Dtype)
ALSO_CALLED = {
    "device": {"gpu": "cuda", "gpu:0": "cuda", "cuda:0": "cuda"},
    "dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
}
"""Other names that people know these by."""
MOST = 1 << 30
LONGEST_QUEUE = 1024
RANGES = {
    "gpu_groups": (1, 1 << 16),
    "host_groups": (1, 1 << 16),
    "max_tokens_per_pass": (1, MOST),
    "max_requests": (1, 4096),
    "max_waiting": (0, 1 << 20),
}
OPTIONAL_RANGES = {
    "context_tokens": (1, MOST),
    "kv_tokens": (1, MOST),
    "reader_lanes": (1, 64),
    "chunk_bytes": (4096, MOST),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of `Model.open`, whose types `Settings` repeats for type checkers and editors.

    Attributes:
        device: "auto" (a GPU where there is one), "cpu", "cpu-copy" (copying each group as for a GPU), "cuda" or "gpu".
        dtype: the dtype to compute in; "auto" is what config.json declares, else that of the first matrix. Bytes travel
            as they are stored, and are cast at use.
        policy: what is prefetched when: the name of a prefetch policy, or an object that is one.
        gpu_groups: weight groups that move, wait or compute on the device; this is what bounds the prefetch depth.
        host_groups: weight groups in pinned host memory; without effect on the CPU, whose memory is one.
        queues: messages that may wait in front of an actor, by the actor's name.
        insert: your own stages, by the name of the actor that they follow; a group that stays passes them once.
        context_tokens: prompt plus new tokens that one request may have.
        kv_tokens: tokens of prompts and answers that all running requests may have together; those that do not fit
            wait, and the log says so. None gives them all that they can use where all weights stay beside it. Where
            memory is short it weighs requests that share a pass against weights that stay, each request taken for 1,024
            tokens or, of a context beyond 4,096, a quarter; `context_tokens` is the least.
        gpu_memory: what to stay within on the device: bytes, a size as "10GiB" or "8G", or a share as "80%" of its
            memory; None is all there is.
        host_memory: the same in host memory, of which a share is one of what the machine (or its control group) leaves
            this process. On the CPU the two are one, and this one counts.
        residency: whether memory that the plan leaves holds weight groups for good, so that fewer of them move. Where
            no limit is set, a tenth of what there is stays free.
        kv_disk: a folder on a disk, for KV blocks for which neither has room.
        max_requests: requests that share a pass. Where memory is short, fewer leave more of it to weights.
        max_waiting: requests beside those that may wait for their turn; one more is refused with `Busy`.
        max_tokens_per_pass: tokens that one pass carries: one of each request that answers, and pieces of prompts.
        share_prefixes: whether calls without a `cache_scope` reuse the KV blocks of prompts that begin alike. Then each
            caller can tell, from how fast it is answered, whether another has sent the same prompt.
        batch_invariant: whether every kernel gets blocks of a fixed number of rows. Then other requests change no bit
            of a request's tokens and log-probabilities, by construction. Without it this holds on the CPUs where it
            was measured; on a GPU a near tie may go the other way. With it a CPU computes up to 1.9 times as long in
            bf16, and longer in fp16, and later prompts do not reuse the KV blocks of answers.
        reader_lanes: reads in flight at a time. None here, and in the next three, is what a measurement at open finds
            best; where lanes and chunks are given nothing is measured.
        chunk_bytes: how much one read asks for, a multiple of 4096 bytes, or a size as "8MiB".
        reader_way: how the disk is read, "preadv" or "aiofiles".
        direct_reads: whether reads go past the page cache.
        checksums: whether weights that are read again are compared with their first read, so that damage on the disk
            stops the answer instead of changing it. None compares them with a GPU, where
            less than 256 MiB move per pass, and on a CPU where it is estimated to cost at most 2 % of a pass.
    """

    device: Device | str = "auto"
    dtype: Dtype | str = "auto"
    policy: str | PrefetchPolicy = "backpressure"
    gpu_groups: int = 4
    host_groups: int = 4
    queues: Mapping[str, int] = field(default_factory=dict)
    insert: Mapping[str, Sequence[Stage | Mover]] = field(default_factory=dict)
    context_tokens: int | None = None
    kv_tokens: int | None = None
    gpu_memory: int | str | None = None
    host_memory: int | str | None = None
    residency: bool = True
    kv_disk: str | Path | None = None
    max_requests: int = 64
    max_waiting: int = 4096
    max_tokens_per_pass: int = 512
    share_prefixes: bool = False
    batch_invariant: bool = False
    reader_lanes: int | None = None
    chunk_bytes: int | str | None = None
    reader_way: str | None = None
    direct_reads: bool | None = None
    checksums: bool | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            if hasattr(value := getattr(self, one.name), "tolist"):  # a number of NumPy or torch
                object.__setattr__(self, one.name, value.tolist())
        for name, spellings in ALSO_CALLED.items():
            given = getattr(self, name)
            object.__setattr__(self, name, spellings.get(given, given) if isinstance(given, str) else given)
        if isinstance(self.chunk_bytes, str):
            object.__setattr__(self, "chunk_bytes", parse_bytes("chunk_bytes", self.chunk_bytes))
        _check_device(self.device)
        _one_of("dtype", self.dtype, DTYPES)
        for name in ("residency", "share_prefixes", "batch_invariant"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: need True or False, have {getattr(self, name)!r}")
        find_policy(self.policy)
        for name, (least, most) in RANGES.items():
            _within(name, getattr(self, name), least, most)
        for name, (least, most) in OPTIONAL_RANGES.items():
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), least, most)
        if isinstance(self.chunk_bytes, int) and self.chunk_bytes % 4096:
            raise ConfigError(f"chunk_bytes: need a multiple of 4096, have {self.chunk_bytes}")
        if self.reader_way is not None:
            _one_of("reader_way", self.reader_way, WAYS)
        for name in ("direct_reads", "checksums"):
            if not isinstance(getattr(self, name), bool | None):
                raise ConfigError(f"{name}: need True or False, have {getattr(self, name)!r}")
        for name in ("gpu_memory", "host_memory"):
            if (value := getattr(self, name)) is not None:
                parse_bytes(name, value, MOST)
        if self.kv_disk is not None:
            if not isinstance(self.kv_disk, str | Path):
                raise ConfigError(f"kv_disk: need the path of a folder, have {shown(self.kv_disk)}")
            free_disk_bytes(self.kv_disk)
        for name, actors in (("queues", ACTORS[1:]), ("insert", ACTORS[:-1])):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name}: need a mapping from actor names, have {getattr(self, name)!r}")
            for actor in getattr(self, name):
                _one_of(name, actor, actors, "actor")
        for actor, size in self.queues.items():
            _within(f"queues[{actor!r}]", size, 1, LONGEST_QUEUE)
        for actor, stages in self.insert.items():
            if not isinstance(stages, Sequence) or not all(isinstance(stage, Stage | Mover) for stage in stages):
                raise ConfigError(f"insert[{actor!r}]: need a list of instances of Stage or Mover, have {stages!r}")
            for stage in stages:
                _own_work(actor, stage)
        names = [*ACTORS, *KV_ACTORS, *(stage.name for stages in self.insert.values() for stage in stages)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"insert: two actors are named {name!r}; give one of them another `name`")

    @property
    def reading(self) -> dict[str, Any]:
        """What is said about how to read: fields of `Reading`."""
        said = {
            "lanes": self.reader_lanes,
            "chunk_bytes": self.chunk_bytes,
            "way": self.reader_way,
            "direct": self.direct_reads,
        }
        return {name: value for name, value in said.items() if value is not None}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], of_calls: Collection[str] = ()) -> "Config":
        """Make a config; an unknown name is an error that names the nearest, or says that it is one `of_calls`."""
        known = [field.name for field in fields(cls)]
        for name in arguments:
            if name in of_calls:
                raise ConfigError(f"{name}: is an argument of generate and stream; give it there")
            if name not in known:
                raise ConfigError(unknown_name("setting", name, known))
        return cls(**arguments)


class Settings(TypedDict, total=False):
    """The settings of `Model.open`, each with its type; `Config` says what they mean."""

    device: Device | str
    dtype: Dtype | str
    policy: str | PrefetchPolicy
    gpu_groups: int
    host_groups: int
    queues: Mapping[str, int]
    insert: Mapping[str, Sequence[Stage | Mover]]
    context_tokens: int | None
    kv_tokens: int | None
    gpu_memory: int | str | None
    host_memory: int | str | None
    residency: bool
    kv_disk: str | Path | None
    max_requests: int
    max_waiting: int
    max_tokens_per_pass: int
    share_prefixes: bool
    batch_invariant: bool
    reader_lanes: int | None
    chunk_bytes: int | str | None
    reader_way: str | None
    direct_reads: bool | None
    checksums: bool | None


def _check_device(name: object) -> None:
    kind, _, index = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind in ("cuda", "gpu") and index.isdecimal():
        raise ConfigError(
            f"device: a model runs on the first GPU that CUDA shows, have {shown(name)}; start the program with "
            'CUDA_VISIBLE_DEVICES set to the GPU to use, and set device="cuda"'
        )
    _one_of("device", name, DEVICES)


def _one_of(setting: str, value: object, known: Sequence[str], what: str = "value") -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{setting}: need one of {', '.join(known)} as text, have {shown(value)}")
    if value not in known:
        raise ConfigError(f"{setting}: {unknown_name(what, value, known)}")


def _own_work(actor: str, stage: Stage | Mover) -> None:
    """Refuse what would fail later: a stage without a name to report, or that does not say what it does."""
    if not isinstance(stage.name, str) or not stage.name:
        raise ConfigError(
            f"insert[{actor!r}]: {type(stage).__name__} needs a text as its `name`, has {shown(stage.name)}"
        )
    base, method = (Stage, "handle") if isinstance(stage, Stage) else (Mover, "move")
    if getattr(type(stage), method) is getattr(base, method):
        raise ConfigError(
            f"insert[{actor!r}]: {type(stage).__name__} has no `async def {method}`, which is what a {base.__name__} "
            "does with each group"
        )


def _within(setting: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{setting}: need a whole number from {least} to {most}, have {value!r}")
