"""The names that a server answers to. A page may let its own name mean this machine (DNS rebinding): then a browser
takes the server for the page's own, and shows it all answers.
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from pipeline.errors import shown
from pipeline.server.errors import ApiError

LOCAL = "localhost"
ANY = "*"
ANYWHERE = "0.0.0.0"
"""Listened on where others than this machine may ask."""


class HostNames:
    """Addresses are always answered to, as no page can be called so, and requests that name no host."""

    def __init__(self, listens_on: str, allowed: Collection[str]) -> None:
        """Names are looked at where `listens_on` is an address of this machine alone, or some are `allowed`."""
        self._names = {LOCAL, listens_on.lower(), *(name.lower() for name in allowed)}
        self._looks = ANY not in allowed and (bool(allowed) or is_loopback(listens_on))

    def refusal(self, host: str | None) -> ApiError | None:
        """Why a request with this Host header is not answered."""
        if not self._looks or host is None:
            return None
        name = host_name(host)
        if name in self._names or name.endswith(f".{LOCAL}") or _is_address(name):
            return None
        known = f"ask for {LOCAL}, or serve with --allowed-host {name or 'NAME'}"
        return ApiError(421, f"this server does not answer to the name {shown(host)}; {known}")


def host_name(host: str) -> str:
    """The name of a host, without its port and in small letters; empty where that cannot be read."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_name(text: str) -> bool:
    """Whether a text is the name of a host, and no pattern, address with a port or URL."""
    return bool(text) and host_name(text) == text.lower() and not {ANY, " "} & {*text}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return False  # nothing can listen there
    return ipaddress.ip_address(address).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
