"""A prefetch policy as a user would write it: it asks for what the test says, and derives from nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.core.ports import Ask, Half, Waits


def nothing(half: Half) -> Sequence[Ask]:
    return ()


@dataclass
class ScriptedPolicy:
    asks: Callable[[Half], Sequence[Ask]] = nothing
    first: Sequence[Ask] = ()
    waits: Waits = "event"
    fallback_seconds: float | None = None
    micro_batches: int = 1
    kv_ahead: bool = True
    name: str = "scripted"
    triggered: bool = True

    def fit(self, slots: Mapping[str, int]) -> "ScriptedPolicy":
        return self

    def warmup(self) -> Sequence[Ask]:
        return self.first

    def at_start(self, half: Half) -> Sequence[Ask]:
        return self.asks(half)
