"""How fast each pair of channels of a head turns with the position, under the kinds of scaling that stretch contexts.

Shape letters in names: H head dim.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch


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


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongScaling


def rope_length(scaling: RopeScaling | None, tokens: int) -> int:
    """The length by which the frequencies of a sequence of so many tokens are chosen; 0 up to the original context.

    Sequences of one length here have the same frequencies. 0 always, where no length counts.
    """
    match scaling:
        case DynamicScaling() if tokens > scaling.original_max_positions:
            return tokens
        case LongScaling() if tokens > scaling.original_max_positions:
            return scaling.original_max_positions + 1
    return 0


def attention_factor(scaling: RopeScaling | None) -> float:
    """What sines and cosines are multiplied by."""
    return scaling.attention_factor if isinstance(scaling, YarnScaling | LongScaling) else 1.0


@lru_cache(maxsize=32)
def frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None, length: int, device: torch.device
) -> torch.Tensor:
    """Radians per position of each pair of channels, [H / 2] fp32, computed on the host as transformers does.

    `length` is one of `rope_length`. The order of operations is that of transformers too, since it sets the rounding.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    turns = 1.0 / theta**exponents
    match scaling:
        case LinearScaling():
            turns = turns / scaling.factor
        case Llama3Scaling():
            turns = _stretch_as_llama3(turns, scaling)
        case YarnScaling():
            turns = _stretch_as_yarn(theta**exponents, theta, scaling)
        case DynamicScaling():
            turns = 1.0 / _dynamic_base(theta, scaling, head_dim, length) ** exponents
        case LongScaling():
            factors = torch.tensor(scaling.long_factors if length else scaling.short_factors)
            turns = 1.0 / (factors * theta**exponents)
    return turns.to(device)


def _stretch_as_llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Source: `apply_scaling` of Meta's Llama 3.1 reference."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelengths = 2 * math.pi / frequencies
    is_long = wavelengths > scaling.original_max_positions / low
    is_short = wavelengths < scaling.original_max_positions / high
    ramp = (scaling.original_max_positions / wavelengths - low) / (high - low)
    between = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    return torch.where(is_long, frequencies / scaling.factor, torch.where(is_short, frequencies, between))


def _stretch_as_yarn(periods: torch.Tensor, theta: float, scaling: YarnScaling) -> torch.Tensor:
    """Section 3.2 of arXiv 2309.00071; `periods` are positions per radian."""
    channels = len(periods)
    first, last = (
        channels * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / math.log(theta)
        for turns in (scaling.fast_turns, scaling.slow_turns)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * channels - 1)
    if first == last:
        last += 0.001
    ramp = ((torch.arange(channels, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _dynamic_base(theta: float, scaling: DynamicScaling, head_dim: int, length: int) -> float | torch.Tensor:
    """The base for a length; beyond the original context it is rounded to fp32, as it is in transformers."""
    longest = torch.tensor(length) if length else scaling.original_max_positions
    stretch = scaling.factor * longest / scaling.original_max_positions - (scaling.factor - 1)
    base: float | torch.Tensor = theta * stretch ** (head_dim / (head_dim - 2))
    return base
