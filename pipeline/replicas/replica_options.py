"""How many servers of one model there are, and what of a machine each of them takes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config
from pipeline.errors import ConfigError, shown
from pipeline.server.host_names import ANYWHERE
from pipeline.server.options import ServerOptions, keys_of_environment
from pipeline.system.hub_cache import find_checkpoint, model_names

OF_A_PORT = ("host", "port")
"""Options of the server that are Serve's here."""
AUTO: Literal["auto"] = "auto"
MOST_REPLICAS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """What `penstock serve --replicas` is told, or the `args` of a config file of Serve. Raises ConfigError.

    Attributes:
        server: how each replica serves the model; its port has no effect, and its host says who can ask.
        replicas: how many there are; "auto" leaves it to Serve, by how many requests each has.
        cpus: CPU cores of each replica, which are threads of torch; None divides those of a machine.
    """

    server: ServerOptions
    replicas: int | Literal["auto"] = AUTO
    cpus: int | None = None

    def __post_init__(self) -> None:
        count = self.replicas
        if count != AUTO and (type(count) is not int or not 1 <= count <= MOST_REPLICAS):
            raise ConfigError(f"replicas: need a number from 1 to {MOST_REPLICAS}, or 'auto', have {shown(count)}")
        if self.cpus is not None and (type(self.cpus) is not int or self.cpus < 1):
            raise ConfigError(f"cpus: need a number of cores above 0, or none to divide a machine's, have {self.cpus}")

    @property
    def settings(self) -> Config:
        """The settings of each replica's model. Raises ConfigError."""
        return Config.from_arguments(self.server.settings)


def replica_options(args: Mapping[str, Any]) -> ReplicaOptions:
    """Read the `args` of an application in a config file of Serve.

    They are the attributes of `ServerOptions` without host and port, of which `model` must be there, and those of
    `ReplicaOptions`. Without `api_keys` those of the variable PENSTOCK_API_KEY count. Raises ConfigError for others,
    CheckpointError for a model that is not there.
    """
    of_server = {field.name for field in dataclasses.fields(ServerOptions)} - set(OF_A_PORT)
    own = {field.name for field in dataclasses.fields(ReplicaOptions)} - {"server"}
    if unknown := set(args) - of_server - own:
        known = ", ".join(sorted(of_server | own))
        raise ConfigError(f"args: no such argument: {', '.join(sorted(unknown))}; there are {known}")
    if not isinstance(args.get("model"), str):
        raise ConfigError("args: need model, a folder or an id")
    folder = find_checkpoint(Path(args["model"]))
    given: dict[str, Any] = {"names": model_names(folder), "api_keys": keys_of_environment(), "settings": {}}
    given |= {name: value for name, value in args.items() if name in of_server}
    given |= {name: tuple(given[name]) for name in ("names", "api_keys", "cors", "allowed_hosts") if name in given}
    given["settings"] = {"share_prefixes": True, **given["settings"]}
    return ReplicaOptions(
        server=ServerOptions(**{**given, "model": folder, "host": ANYWHERE}),
        **{name: args[name] for name in own & set(args)},
    )
