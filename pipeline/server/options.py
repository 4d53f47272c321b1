"""How a model is served. How it is run is said by `Config`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, shown
from pipeline.server.host_names import ANY, is_name

LONGEST_DRAIN_SECONDS = 86_400
KEYS = "PENSTOCK_API_KEY"
"""The variable of the environment that holds API keys, with commas between them, where no others are given."""


def keys_of_environment() -> tuple[str, ...]:
    """The API keys that the environment says."""
    return tuple(key for key in os.environ.get(KEYS, "").split(",") if key)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What `penstock serve` is told. Raises ConfigError for what can never work.

    Attributes:
        model: the checkpoint folder.
        settings: those of `Config`.
        names: what clients call the model; the first one stands in answers.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        api_keys: any one of them is asked for, where there is one; callers with different keys share no KV blocks.
        cors: origins whose pages may ask; "*" is any.
        allowed_hosts: names by which the server may be asked, beside localhost and addresses; "*" is any. Where it
            listens for others than this machine and none is said, it is any, too.
        drain_seconds: how long running requests may take to finish after SIGTERM.
        template: the text of a chat template, in the place of the checkpoint's.
    """

    model: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    template: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port: need a number from 0 to 65535, have {self.port}")
        if not 0 <= self.drain_seconds <= LONGEST_DRAIN_SECONDS:
            have = shown(self.drain_seconds)
            raise ConfigError(f"--drain-seconds: need seconds from 0 to {LONGEST_DRAIN_SECONDS}, have {have}")
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise ConfigError("--api-key: need printable ASCII characters without spaces, as a header can carry them")
        if wrong := [one for one in self.allowed_hosts if one != ANY and not is_name(one)]:
            raise ConfigError(f"--allowed-host: need a name without scheme and port, or just *, have {shown(wrong[0])}")
        if not all(self.names):
            raise ConfigError("--served-name: need a name, have an empty one")
