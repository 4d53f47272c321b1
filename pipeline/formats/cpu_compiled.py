"""What numba compiles for a CPU, where it is installed: what decodes quantised matrices, multiplies rows in bf16, and
attends.

Letters in names: T tokens of this pass, D columns, F rows of a matrix.
"""

import functools
import logging
from types import ModuleType

import torch

logger = logging.getLogger("penstock")
LEAST_NUMBERS = 1 << 20
"""Of a matrix in bf16. Smaller ones take torch 0.1 ms longer at most, and small models would wait 2 s for numba."""


@functools.cache
def kernels() -> ModuleType | None:
    """What has the kernels, with the memory taken that numba needs to compile (130 MB); None where that fails."""
    try:
        from pipeline.formats import cpu_decoding

        cpu_decoding.try_out()
    except ImportError as error:
        logger.info(
            "torch decodes quantised matrices, multiplies and attends; numba, of the extra [cpu], would be faster (%s)",
            error,
        )
        return None
    except Exception as error:
        name = type(error).__name__
        logger.warning(
            "torch decodes quantised matrices, multiplies and attends, since numba could not compile: %s: %s",
            name,
            error,
        )
        return None
    return cpu_decoding


def products(x_TD: torch.Tensor) -> ModuleType | None:
    """Return what multiplies rows like these by quantised or large matrices; None where a CPU or numba lacks it."""
    if kernels() is None:
        return None
    from pipeline.formats import cpu_products

    return cpu_products if cpu_products.can_multiply(x_TD) else None


def dense_products(weight_FD: torch.Tensor, x_TD: torch.Tensor) -> ModuleType | None:
    """Return what multiplies rows like these by a matrix that is not quantised; None where torch does, see `products`.

    That follows from its size, its dtype and how it lies, never from the number of rows.
    """
    if weight_FD.device.type != "cpu" or not weight_FD.is_contiguous():
        return None
    return products(x_TD) if is_large(weight_FD.dtype, weight_FD.nbytes) else None


def is_large(dtype: torch.dtype | None, nbytes: int) -> bool:
    """Whether a matrix of this dtype and so many bytes is multiplied by what numba compiles, where that can be."""
    return dtype == torch.bfloat16 and nbytes >= LEAST_NUMBERS * torch.bfloat16.itemsize and has_dots()


@functools.cache
def has_dots() -> bool:
    """Whether this CPU multiplies in bf16, and torch does no better, as with AMX. Asked of torch: numba takes room."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
