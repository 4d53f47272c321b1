"""Bytes that stand for one float or two, looked up in tables: decoding is one pass, whatever the format.

Letters in names: F rows of a matrix, N bytes of a row.
"""

import functools

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What nibbles stand for as floats of 4 bits (e2m1)."""
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""What they stand for in bitsandbytes' nf4. Files hold them too (quant_map), which the library does not read either."""


def looked_up(bytes_FN: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """What each byte stands for, in fp32 as a new tensor: [F, N] with a table of [256], [F, 2 N] with one of [256, 2].

    The table is looked up by torch.gather, which threads share. The casts of torch from 8 bit floats take ten times as
    long on CPUs.
    """
    items = table if table.ndim == 1 else table.view(torch.int64)[:, 0]
    return torch.gather(items.expand(len(bytes_FN), -1), 1, bytes_FN.view(torch.uint8).long()).view(torch.float32)


def scales_in_float32(scales: torch.Tensor) -> torch.Tensor:
    """Scales as they are stored: as floats, as e4m3, or as e8m0, the exponent of a power of two, which U8 is too."""
    if scales.dtype is torch.float8_e4m3fn:
        return looked_up(scales, byte_table(torch.float8_e4m3fn, scales.device))
    if is_exponent(scales):
        return looked_up(scales, byte_table(torch.float8_e8m0fnu, scales.device))
    return scales.to(torch.float32)


def is_exponent(scales: torch.Tensor) -> bool:
    """Whether they are exponents of a power of two."""
    return scales.dtype in (torch.uint8, torch.float8_e8m0fnu)


@functools.cache
def byte_table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The values of all bytes of a dtype of 8 bits, [256] in fp32."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).to(device)


@functools.cache
def nibble_table(values: tuple[float, ...], device: torch.device, *, high_first: bool = False) -> torch.Tensor:
    """The two values that a byte stands for, each by one of its nibbles, [256, 2] in fp32."""
    codes = torch.arange(256)
    low, high = codes & 15, codes >> 4
    pairs = torch.stack((high, low) if high_first else (low, high), dim=1)
    return torch.tensor(values, dtype=torch.float32)[pairs].to(device)


@functools.cache
def level_table(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """What each nibble stands for, [16] in fp32."""
    return torch.tensor(values, dtype=torch.float32, device=device)
