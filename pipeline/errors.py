"""The errors that a caller of Penstock can meet. Each message says what, where, need and have, and what to do."""

from actors.core.errors import ActorFailed, PenstockError

__all__ = ["ActorFailed", "CheckpointError", "ClosedError", "ConfigError", "PenstockError", "RequestError"]


class ConfigError(PenstockError, ValueError):
    """A setting that can never work, or a model that is not supported. Raised before any work."""


class CheckpointError(PenstockError):
    """The files of a checkpoint are missing, truncated, or contradict each other. Raised before any work."""


class RequestError(PenstockError, ValueError):
    """One request cannot be served as asked. Other requests are not touched."""


class ClosedError(PenstockError):
    """The model was closed while, or before, the request ran."""
