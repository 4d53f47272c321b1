"""The seven prefetch policies, as rows of one table.

A policy says what is asked for when a half-layer starts to compute, and how computations wait for their weights. Take a
row, change its parameters with `dataclasses.replace`, or implement `actors.core.ports.PrefetchPolicy` yourself.
"""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from actors.core.ports import Ask, Half, PrefetchPolicy, Priority, Waits
from pipeline.errors import ConfigError, shown, unknown_name
from pipeline.formats.parts import ATTN, FFN, LAYER_PARTS

logger = logging.getLogger("penstock")
DEPTH = 4
GROUP_LIMIT = 10
FALLBACK_SECONDS = 0.1
ENTRY_POINTS = "pipeline.policies"
WAITS = get_args(Waits)
MEMBERS = ("name", "triggered", "waits", "fallback_seconds", "micro_batches", "kv_ahead", "fit", "warmup", "at_start")
"""An object that has these is a PrefetchPolicy."""


@dataclass(frozen=True, slots=True)
class Want:
    """Groups that a trigger asks for: those of one kind, `first` to `last` layers ahead; None is the policy's depth."""

    kind: str
    first: int
    last: int | None
    priority: Priority = Priority.MEDIUM


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One row.

    Attributes:
        name: what people call it by.
        at_attn, at_ffn: what is asked for when the computation of that half-layer starts.
        waits: "blocking", "event" or "chained"; see `actors.core.ports.Waits`.
        triggered: False lets groups travel in compute order, on into the next pass, as far as budgets and queues allow.
        depth: how many layers ahead a `Want` without an end goes.
        warmup_layers: layers that are asked for before the first pass.
        group_limit: asks for nothing while that many groups, less two, are on the device; None sets no limit.
        fallback_seconds: how overdue an upload's event may be before the group is loaded again; None waits for ever.
        micro_batches: parts of a pass that are computed beside each other, ffn beside attention.
        kv_ahead: KV blocks are asked for when the layer before starts, not when it has ended.
    """

    name: str
    at_attn: tuple[Want, ...] = ()
    at_ffn: tuple[Want, ...] = ()
    waits: Waits = "event"
    triggered: bool = True
    depth: int = DEPTH
    warmup_layers: int = 0
    group_limit: int | None = None
    fallback_seconds: float | None = None
    micro_batches: int = 1
    kv_ahead: bool = True

    @property
    def goes_to_depth(self) -> bool:
        """Whether `depth` says how far ahead the row asks."""
        return any(want.last is None for want in (*self.at_attn, *self.at_ffn))

    def fit(self, slots: Mapping[str, int]) -> "Policy":
        """Clip the depth, and the warm-up, to the slots; says so when that changes something.

        One layer computes or is next, so all but one of the layers that the slots hold can be ahead.
        """
        if not self.triggered:
            return self
        held = min(slots.values()) if len(slots) > 1 else sum(slots.values()) // 2
        depth = min(self.depth, max(0, held - 1)) if self.goes_to_depth else self.depth
        layers = min(self.warmup_layers, held)
        if (depth, layers) != (self.depth, self.warmup_layers):
            logger.warning(
                "policy %s: depth clipped from %d to %d and warm-up from %d to %d layers, all that %d slots hold; "
                "raise gpu_groups for more",
                self.name, self.depth, depth, self.warmup_layers, layers, sum(slots.values()),
            )  # fmt: skip
        return replace(self, depth=depth, warmup_layers=layers)

    def warmup(self) -> Sequence[Ask]:
        """The groups of the first layers, in compute order."""
        return [Ask(kind, layer) for layer in range(self.warmup_layers) for kind in LAYER_PARTS]

    def at_start(self, half: Half) -> Sequence[Ask]:
        """Return what the row asks for at this trigger."""
        if self.group_limit is not None and half.held + 2 >= self.group_limit:
            return ()
        wants = {ATTN: self.at_attn, FFN: self.at_ffn}.get(half.kind, ())
        return [
            Ask(want.kind, half.layer + ahead, want.priority)
            for want in wants
            for ahead in range(want.first, (self.depth if want.last is None else want.last) + 1)
        ]


_NEXT_ATTN = (Want(ATTN, 1, 1, Priority.HIGH),)
_OWN_FFN = Want(FFN, 0, 0, Priority.HIGH)
_ATTN_AHEAD, _FFN_AHEAD = Want(ATTN, 1, None), Want(FFN, 1, None)

_STAGE_1 = Policy(
    name="stage1", at_attn=(_OWN_FFN, _ATTN_AHEAD), at_ffn=(_FFN_AHEAD,), waits="blocking", warmup_layers=1
)

POLICIES: Mapping[str, Policy] = {
    row.name: row
    for row in (
        Policy(name="history1", at_attn=(_ATTN_AHEAD,), at_ffn=(_FFN_AHEAD,), waits="blocking", warmup_layers=1),
        Policy(name="history", at_ffn=_NEXT_ATTN, group_limit=GROUP_LIMIT, kv_ahead=False),
        Policy(name="current", at_ffn=_NEXT_ATTN, group_limit=GROUP_LIMIT, kv_ahead=False),
        _STAGE_1,
        replace(_STAGE_1, name="stage2", waits="event", fallback_seconds=FALLBACK_SECONDS),
        replace(_STAGE_1, name="stage3", waits="chained", micro_batches=2),
        Policy(name="backpressure", triggered=False, waits="chained"),
    )
}
CURRENT_CHAINED = replace(POLICIES["current"], waits="chained")
"""`current` with chained waits, which the engine that it comes from had, but never used: see README.md in this room."""


def fit_policy(policy: PrefetchPolicy, slots: Mapping[str, int]) -> PrefetchPolicy:
    """The policy clipped to the slots by its own `fit`. Raises ConfigError where that fails or gives no policy."""
    try:
        fitted: object = policy.fit(slots)
    except Exception as error:
        raise ConfigError(f"policy {policy.name}: fit failed: {type(error).__name__}: {error}") from error
    if not isinstance(fitted, PrefetchPolicy):
        raise ConfigError(f"policy {policy.name}: fit must give a PrefetchPolicy, gave {fitted!r}")
    return fitted


def find_policy(policy: str | PrefetchPolicy) -> PrefetchPolicy:
    """The policy of that name, from the table or from an installed package's entry point; or the policy itself.

    Raises ConfigError for an unknown name, and for an object that is no policy.
    """
    found: object = policy
    if isinstance(policy, str) and policy in POLICIES:
        found = POLICIES[policy]
    elif isinstance(policy, str):
        installed = importlib.metadata.entry_points(group=ENTRY_POINTS)
        if policy not in installed.names:
            known = [*POLICIES, *sorted(installed.names)]
            raise ConfigError(f"policy: {unknown_name('policy', policy, known)}")
        try:
            found = installed[policy].load()
            found = found() if isinstance(found, type) else found
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            raise ConfigError(f"policy: entry point {policy!r} of group {ENTRY_POINTS} failed: {fault}") from error
    if isinstance(found, type):
        raise ConfigError(f"policy: need an instance, have the class {found.__name__}; give {found.__name__}(...)")
    if not isinstance(found, PrefetchPolicy):
        lacks = [name for name in MEMBERS if not hasattr(found, name)]
        without = f", which lacks {', '.join(lacks)}" if len(lacks) < len(MEMBERS) else ""
        need = "need a name or a PrefetchPolicy (see actors.core.ports)"
        raise ConfigError(f"policy: {need}, have {shown(found)}{without}")
    if not isinstance(found.name, str):
        raise ConfigError(f"policy: need a text as its name, have {shown(found.name)}")
    if found.waits not in WAITS or not isinstance(found.micro_batches, int) or found.micro_batches < 1:
        have = f"{found.waits!r} and {found.micro_batches!r}"
        need = f"waits of {', '.join(WAITS)} and at least 1 micro-batch"
        raise ConfigError(f"policy {found.name}: need {need}, have {have}")
    fallback = found.fallback_seconds
    if fallback is not None and not (isinstance(fallback, int | float) and fallback > 0):
        raise ConfigError(f"policy {found.name}: fallback_seconds must be above 0 or None, have {fallback!r}")
    return found
