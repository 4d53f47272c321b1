"""Rotary embedding as data: which channels of a head turn, how fast, and by which scaling contexts are stretched."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Frequencies divided by `factor`: position interpolation (arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Frequencies as Llama 3.1 stretches them: low ones divided by `factor`, high ones kept, a ramp between."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): channels that turn more than `fast_turns` times in the original context are kept.

    Those that turn less than `slow_turns` times are divided by `factor`, with a ramp between, whose ends are whole
    channels if `truncate`. Sines and cosines are multiplied by `attention_factor`.
    """

    factor: float
    attention_factor: float
    fast_turns: float
    slow_turns: float
    truncate: bool
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScaling:
    """NTK-aware scaling whose base grows with the length of the sequence, as soon as that exceeds the original context.

    Source: appendix B.2 of arXiv 2309.00071, "Dynamic NTK".
    """

    factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LongScaling:
    """LongRoPE (arXiv 2402.13753): each frequency divided by a factor of its own, found by search.

    There are two sets, one for sequences up to the original context and one for longer ones. Sines and cosines are
    multiplied by `attention_factor`, whichever it is.
    """

    attention_factor: float
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProportionalScaling:
    """Only the fastest `share` of the pairs of channels turn, divided by `factor`; the others stay as they are."""

    share: float
    factor: float


RopeScaling: TypeAlias = (
    LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongScaling | ProportionalScaling
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How the queries and keys of a layer are turned by their position.

    The first `channels` of a head turn, in pairs: of channels that lie side by side if it is `interleaved`, else of one
    of the first half and its like of the second. With `query_growth` (beta, original) a turned query is multiplied by
    1 + beta * log(1 + floor(position / original)).
    """

    theta: float
    channels: int
    scaling: RopeScaling | None = None
    interleaved: bool = False
    query_growth: tuple[float, int] | None = None


def rope_length(rope: Rope, tokens: int) -> int:
    """The length by which the frequencies of a sequence of so many tokens are chosen; 0 up to the original context.

    Sequences of one length here have the same frequencies. 0 always, where no length counts.
    """
    match scaling := rope.scaling:
        case DynamicScaling() if tokens > scaling.original_max_positions:
            return tokens
        case LongScaling() if tokens > scaling.original_max_positions:
            return scaling.original_max_positions + 1
    return 0


def attention_factor(rope: Rope) -> float:
    """Return what sines and cosines are multiplied by."""
    scaling = rope.scaling
    return scaling.attention_factor if isinstance(scaling, YarnScaling | LongScaling) else 1.0
