"""Commands that look at the line of one device."""

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError


def check_one_device(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for what can never work, and for several devices, of a command that looks at one line."""
    devices = Config.from_arguments(settings).devices
    if devices is not None:
        have = devices if isinstance(devices, str) else ",".join(devices)
        raise ConfigError(f"--devices: this command looks at the line of one device, have {have}; name one as --device")
