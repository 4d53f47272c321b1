"""How a model is run: frozen, keyword-only, every number checked before any work."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from actors.core.expert_cache import EvictionPolicy
from actors.core.ports import PrefetchPolicy
from pipeline.engine.device_names import DeviceName
from pipeline.engine.settings import MOST, EngineSettings, Own, one_of, true_or_false, within
from pipeline.errors import ConfigError, shown, unknown_name
from pipeline.system.host_memory import free_disk_bytes

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
ALSO_CALLED = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
"""Other names that people know dtypes by."""
MOST_SECONDS = 86_400
MOST_SECTIONS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(EngineSettings):
    """The settings of `Model.open`: those of `EngineSettings` and of what is computed. `Settings` repeats their types
    for type checkers and editors.

    Attributes:
        dtype: the dtype to compute in; "auto" is what config.json declares, else that of the first matrix. Bytes travel
            as they are stored, and are cast at use.
        context_tokens: prompt plus new tokens that one request may have.
        kv_tokens: tokens of prompts and answers that all running requests may have together; those that do not fit
            wait, and the log says so. None gives them all that they can use where all weights stay beside it. Where
            memory is short it weighs requests that share a pass against weights that stay, each request taken for 1,024
            tokens or, of a context beyond 4,096, a quarter; `context_tokens` is the least.
        kv_disk: a folder on a disk, for KV blocks and recurrent states for which neither has room.
        max_requests: requests that share a pass. Where memory is short, fewer leave more of it to weights.
        state_snapshots: snapshots of recurrent state, from which prompts that begin alike go on, beside those in slots
            of requests that do not run. None chooses one for every eight requests that may run, at least 2.
        max_waiting: requests beside those that may wait for their turn; one more is refused with `Busy`.
        max_tokens_per_pass: tokens that one pass carries: one of each request that answers, and pieces of prompts. None
            chooses: as many as make a prompt cost the fewest passes, where that costs answers less than it saves; 512
            where memory is short. A number is kept to, without `max_pass_seconds` whatever time it takes.
        max_pass_seconds: by how much prompts may delay the next token of running requests. None allows as long as the
            bytes of a pass take, at the rates of disk and link that the plan prints, at least 0.5.
        share_prefixes: whether calls without a `cache_scope` reuse the KV blocks of prompts that begin alike. Then each
            caller can tell, from how fast it is answered, whether another has sent the same prompt.
        batch_invariant: whether every kernel gets blocks of a fixed number of rows. Then other requests change no bit
            of a request's tokens and log-probabilities, by construction. Without it this holds on the CPUs where it
            was measured; on a GPU a near tie may go the other way. With it a CPU computes up to 1.9 times as long in
            bf16, and longer in fp16, and later prompts do not reuse the KV blocks of answers.
        cluster: lets each node of a Ray cluster compute some layers, from its own copy of the folder at the same path.
            "auto" is the cluster that this machine is a node of, HOST:PORT another; it needs the extra `ray`.
            What other settings say of memory, devices and disks counts for each node.
        sections: on a cluster, how many there are; None is one for each node.
    """

    dtype: Dtype | str = "auto"
    context_tokens: int | None = None
    kv_tokens: int | None = None
    kv_disk: str | Path | None = None
    max_requests: int = 64
    state_snapshots: int | None = None
    max_waiting: int = 4096
    max_tokens_per_pass: int | None = None
    max_pass_seconds: float | None = None
    share_prefixes: bool = False
    batch_invariant: bool = False
    cluster: str | None = None
    sections: int | None = None

    def __post_init__(self) -> None:
        EngineSettings.__post_init__(self)  # a class with slots is made anew, so super() would not find it
        if isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", ALSO_CALLED.get(self.dtype, self.dtype))
        one_of("dtype", self.dtype, DTYPES)
        true_or_false("share_prefixes", self.share_prefixes)
        true_or_false("batch_invariant", self.batch_invariant)
        if self.batch_invariant and self.cpu_experts:
            why = "what computes an expert depends on where other requests have left it"
            raise ConfigError(f"cpu_experts={self.cpu_experts}: {why}; leave it out, or batch_invariant")
        within("max_tokens_per_pass", self.max_tokens_per_pass, 1, MOST, or_none=True)
        seconds = self.max_pass_seconds
        if seconds is not None and (not _is_number(seconds) or not 0 < seconds <= MOST_SECONDS):
            raise ConfigError(f"max_pass_seconds: need seconds above 0, at most {MOST_SECONDS}, have {shown(seconds)}")
        within("max_requests", self.max_requests, 1, 4096)
        within("state_snapshots", self.state_snapshots, 0, 4096, or_none=True)
        within("max_waiting", self.max_waiting, 0, 1 << 20)
        within("context_tokens", self.context_tokens, 1, MOST, or_none=True)
        within("kv_tokens", self.kv_tokens, 1, MOST, or_none=True)
        if self.kv_disk is not None:
            if not isinstance(self.kv_disk, str | Path):
                raise ConfigError(f"kv_disk: need the path of a folder, have {shown(self.kv_disk)}")
            free_disk_bytes(self.kv_disk)
        self._check_cluster()

    def _check_cluster(self) -> None:
        """What a section on a node cannot have is refused here."""
        within("sections", self.sections, 1, MOST_SECTIONS, or_none=True)
        if self.cluster is None:
            if self.sections is not None:
                raise ConfigError("sections: these are of a cluster; give cluster='auto', too, or devices instead")
            return
        if not isinstance(self.cluster, str) or not self.cluster:
            raise ConfigError(f"cluster: need 'auto' or HOST:PORT, have {shown(self.cluster)}")
        if self.devices is not None:
            raise ConfigError("devices: a section of a cluster computes on one device; leave devices out, or cluster")

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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Settings(TypedDict, total=False):
    """The settings of `Model.open`, each with its type; `Config` says what they mean."""

    device: DeviceName | str
    devices: Sequence[str] | str | None
    dtype: Dtype | str
    policy: str | PrefetchPolicy
    gpu_groups: int | None
    host_groups: int
    queues: Mapping[str, int]
    insert: Mapping[str, Sequence[Own]]
    context_tokens: int | None
    kv_tokens: int | None
    gpu_memory: int | str | None
    host_memory: int | str | None
    gpu_experts: int | None
    host_experts: int | None
    expert_cache: str | Callable[[], EvictionPolicy]
    lookahead: bool | str
    cpu_experts: bool | str
    residency: bool
    kv_disk: str | Path | None
    max_requests: int
    state_snapshots: int | None
    max_waiting: int
    max_tokens_per_pass: int | None
    max_pass_seconds: float | None
    share_prefixes: bool
    batch_invariant: bool
    cluster: str | None
    sections: int | None
    reader_lanes: int | None
    chunk_bytes: int | str | None
    reader_way: str | None
    direct_reads: bool | None
    checksums: bool | None
