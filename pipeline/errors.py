"""The errors that a caller of Penstock can meet. Each message says what, where, need and have, and what to do."""

import copy
import difflib
import reprlib
from collections.abc import Sequence

from actors.core.errors import ActorFailed, PenstockError

__all__ = [
    "ActorFailed",
    "Busy",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "PenstockError",
    "RequestError",
    "ResourceError",
]


class ConfigError(PenstockError, ValueError):
    """A setting that can never work, or a model that is not supported. Raised before any work."""


class CheckpointError(PenstockError):
    """The files of a checkpoint are missing, truncated, or contradict each other. Raised before any work."""


class ResourceError(PenstockError):
    """The process or its machine has no more memory, descriptors, threads or room on a disk. The files are in order.

    Raised at opening; in a request it is the cause of ActorFailed, and later calls work again where there is room.
    """


class RequestError(PenstockError, ValueError):
    """One request cannot be served as asked. Other requests are not touched."""


class Busy(PenstockError):
    """As many requests wait as may. Raised before any work; the same call works when some of them have ended."""


class ClosedError(PenstockError):
    """The model was closed while, or before, the request ran."""


def for_one_caller(error: BaseException) -> PenstockError:
    """The same error, with the same cause, for one of its callers: one that is raised collects its caller's frames."""
    if not isinstance(error, PenstockError):
        return ActorFailed("the line", None, None, error)
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


LONGEST_NAME = 100
NEAR = 0.8
"""How much of two names must be alike before one is taken for a misspelt other."""


def unknown_name(what: str, name: str, known: Sequence[str]) -> str:
    """Say that `name` is unknown, and which known name it misspells, or else which are known.

    Only where that is all but certain, as no suggestion is better than a wrong one: one name alone is near, and it
    has the same first letter and the same numbers ("float64" is not "float16" misspelt, nor "xpu" "cpu").
    """
    alike = [one for one in known if one[:1] == name[:1] and _digits(one) == _digits(name)]
    near = difflib.get_close_matches(name[:LONGEST_NAME], alike, n=2, cutoff=NEAR)
    hint = f"did you mean {near[0]!r}?" if len(near) == 1 else f"known are {', '.join(known)}"
    return f"unknown {what} {shown(name)}; {hint}"


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def shown(value: object) -> str:
    """Return what a message says that it has: short, whatever it is."""
    try:
        return reprlib.repr(value)
    except Exception:  # Python writes no number of more than 4,300 digits; a caller's own class may raise anything
        return f"a {type(value).__name__}"
