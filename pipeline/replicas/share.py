"""What one replica takes of a machine, in the words of Ray, which places replicas by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError, shown
from pipeline.replicas.replica_options import ReplicaOptions
from pipeline.system.sizes import parse_bytes

WITHOUT_GPU = ("cpu", "cpu-copy")


@dataclass(frozen=True, slots=True)
class Machine:
    """What Ray may give away of a machine."""

    cpus: int
    gpus: int


def share_of(options: ReplicaOptions, machines: Sequence[Machine]) -> dict[str, Any]:
    """Return the options of the deployment of replicas that say what each takes.

    A replica whose `host_memory` is a size takes that of Ray's resource `memory`, so that Ray places no more of them
    on a machine than have room; one whose model takes what there is gets a machine of its own. Raises ConfigError
    where there are fewer machines than that needs.
    """
    if not (machines := [one for one in machines if one.cpus]):  # of many clusters the head has none
        raise ConfigError("need a machine with cores for a replica, and the cluster of Ray has none; start one there")
    config = options.settings
    host_bytes = _host_bytes(config)
    count = options.replicas if isinstance(options.replicas, int) else len(machines)
    if host_bytes is None and count > len(machines):
        raise ConfigError(
            f"host_memory: need a size for each of {count} replicas on {len(machines)} "
            f"machine{'s' * (len(machines) > 1)}, as each takes all memory else; set --host-memory, such as 8GB"
        )
    beside = -(-count // len(machines))
    cpus = options.cpus or _equal_part(min(one.cpus for one in machines), beside)
    taken = {"num_cpus": cpus, "num_gpus": _gpus(config, machines)}
    if host_bytes is None:
        return {"ray_actor_options": taken, "max_replicas_per_node": 1}
    return {"ray_actor_options": {**taken, "memory": host_bytes}}


def _host_bytes(config: Config) -> int | None:
    """The size that a replica stays within; None where it takes a share of what there is."""
    said = config.host_memory
    is_size = said is not None and not (isinstance(said, str) and said.strip().endswith("%"))
    return parse_bytes("host_memory", said) if is_size else None


def _equal_part(cpus: int, replicas: int) -> float:
    """Whole cores for each replica of a machine, or a part of one where there are fewer."""
    return cpus // replicas or cpus / replicas


def _gpus(config: Config, machines: Sequence[Machine]) -> int:
    """How many of a machine a replica has, which sees no others."""
    if config.devices is not None:
        if isinstance(config.devices, str):
            have = shown(config.devices)
            raise ConfigError(f"devices: need the names of those of one replica, such as cuda:0,cuda:1, have {have}")
        return len(config.devices) * (config.devices[0].partition(":")[0] not in WITHOUT_GPU)
    if config.device in WITHOUT_GPU:
        return 0
    return 1 if config.device != "auto" or any(machine.gpus for machine in machines) else 0
