"""The errors of a line. Each names the place where it happened."""

from typing import Any


class PenstockError(Exception):
    """The root of every error that Penstock raises on purpose."""


class ChannelClosed(PenstockError):
    """The other end of a channel is closed and nothing is left in it."""


class SlotError(PenstockError):
    """A slot was used against its lease: released twice, or by an actor that does not hold it. Always a bug."""


class LineError(PenstockError):
    """A line was wired or driven in a way that can never work, or a stage broke rule 1."""


class PolicyFailed(LineError):
    """A prefetch policy raised, or gave no answer."""


class ActorFailed(PenstockError):
    """An actor of a line failed; the line has stopped. `__cause__` is the first cause (rule 7).

    Attributes name the place: `actor`, and, when a group was in hand, its `layer` and `group`; `computer` is the device
    or the node of its line, where there are several.
    """

    def __init__(
        self, actor: str, layer: int | None, group: str | None, cause: BaseException, computer: str | None = None
    ) -> None:
        self.actor = actor
        self.layer = layer
        self.group = group
        self.computer = computer
        super().__init__(f"{self.place}: {said(cause)}")
        self.__cause__ = cause

    @property
    def place(self) -> str:
        """Where it happened, in words."""
        on = "" if self.computer is None else f" on {self.computer}"
        where = "" if self.group is None else f" at layer {self.layer} group {self.group!r}"
        return f"{self.actor}{on} failed{where}"

    def on(self, computer: str) -> "ActorFailed":
        """The same error, which names the device or the node of the line."""
        cause = self.__cause__ or self
        return ActorFailed(self.actor, self.layer, self.group, cause, computer).with_traceback(self.__traceback__)

    def __reduce__(self) -> tuple[Any, ...]:
        """How `copy` and `pickle` make another one: from what it was made of, not from its message."""
        return type(self), (self.actor, self.layer, self.group, self.__cause__, self.computer), self.__dict__


def said(error: BaseException) -> str:
    """The type and the message of an error, as text: also of one whose `__str__` raises, so that it is reported."""
    try:
        return f"{type(error).__name__}: {error}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return f"{type(error).__name__}, which says nothing"
