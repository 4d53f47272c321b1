"""How fast each pair of channels of a head turns with the position, under the kinds of scaling that stretch contexts.

Shape letters in names: C channels that turn.
"""

import math
from functools import lru_cache

import torch

from pipeline.models.ropes import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ProportionalScaling,
    Rope,
    YarnScaling,
    rope_length,
)


@lru_cache(maxsize=32)
def frequencies(rope: Rope, length: int, device: torch.device) -> torch.Tensor:
    """Radians per position of each pair of channels, [C / 2] fp32, computed on the host as transformers does.

    `length` is one of `rope_length`. The order of operations is that of transformers too, since it sets the rounding.
    """
    theta, channels = rope.theta, rope.channels
    exponents = torch.arange(0, channels, 2, dtype=torch.int64).float() / channels
    turns = 1.0 / theta**exponents
    match scaling := rope.scaling:
        case LinearScaling():
            turns = turns / scaling.factor
        case Llama3Scaling():
            turns = _stretch_as_llama3(turns, scaling)
        case YarnScaling():
            turns = _stretch_as_yarn(theta**exponents, theta, scaling)
        case DynamicScaling():
            turns = 1.0 / _dynamic_base(theta, scaling, channels, length) ** exponents
        case LongScaling():
            factors = torch.tensor(scaling.long_factors if length else scaling.short_factors)
            turns = 1.0 / (factors * theta**exponents)
        case ProportionalScaling():
            turns[int(scaling.share * channels // 2) :] = 0
            turns = turns / scaling.factor
    return turns.to(device)


def are_possible(rope: Rope, longest: int) -> bool:
    """Whether frequencies above 0 follow for sequences of up to so many tokens; those that stand still are meant to."""
    try:
        sets = [frequencies(rope, length, torch.device("cpu")) for length in (0, rope_length(rope, longest))]
    except (OverflowError, ZeroDivisionError):
        return False
    still = isinstance(rope.scaling, ProportionalScaling)
    return all(bool((turns.isfinite() & (turns >= 0 if still else turns > 0)).all()) for turns in sets)


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


def _dynamic_base(theta: float, scaling: DynamicScaling, channels: int, length: int) -> float | torch.Tensor:
    """The base for a length; beyond the original context it is rounded to fp32, as it is in transformers."""
    longest = torch.tensor(length) if length else scaling.original_max_positions
    stretch = scaling.factor * longest / scaling.original_max_positions - (scaling.factor - 1)
    base: float | torch.Tensor = theta * stretch ** (channels / (channels - 2))
    return base
