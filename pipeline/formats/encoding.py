"""Plain matrices as compressed-tensors stores them, each number rounded to the nearest: [F, D] in, parts out.

Parts are called by what ends their names in place of "weight". Scales have the dtype of the matrix, and are those of
that library's observers of the least and the largest number. Rows do not depend on each other.
Letters in names: D columns, F rows of a matrix, G groups of columns that share a scale.
"""

import torch

FLOAT8_MOST = 448.0
MXFP4_GROUP = 32
FLOAT4_EDGES = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))
"""Between neighbours of e2m1, and whether the upper one, whose last bit is 0, has the edge."""
Parts = dict[str, torch.Tensor]


def int4_parts(matrix_FD: torch.Tensor, group: int) -> Parts:
    """Whole numbers from -8 to 7, eight in a word, and a scale for so many columns, by which D is divided."""
    grouped_FGd = matrix_FD.float().unflatten(1, (-1, group))
    scales_FG = _not_zero((grouped_FGd.abs().amax(-1) / 7.5).to(matrix_FD.dtype))
    numbers_FGd = (grouped_FGd / scales_FG.float().unsqueeze(-1)).round_().clamp_(-8, 7).to(torch.int32) + 8
    words = (numbers_FGd.view(len(matrix_FD), -1, 8) << torch.arange(0, 32, 4, dtype=torch.int32)).sum(-1)
    return {
        "weight_packed": words.to(torch.int32),
        "weight_scale": scales_FG,
        "weight_shape": torch.tensor(matrix_FD.shape),
    }


def float8_parts(matrix_FD: torch.Tensor) -> Parts:
    """Floats of 8 bits (e4m3), and a scale for each row."""
    scales_F1 = _not_zero((matrix_FD.float().abs().amax(1, keepdim=True) / FLOAT8_MOST).to(matrix_FD.dtype))
    values_FD = (matrix_FD.float() / scales_F1.float()).clamp_(-FLOAT8_MOST, FLOAT8_MOST)
    return {"weight": values_FD.to(torch.float8_e4m3fn), "weight_scale": scales_F1}


def mxfp4_parts(matrix_FD: torch.Tensor) -> Parts:
    """Floats of 4 bits (e2m1), two in a byte, and a power of two for 32 columns, by which D is divided."""
    grouped_FGd = matrix_FD.float().unflatten(1, (-1, MXFP4_GROUP))
    # The largest number comes to lie from 3.5 to below 7, where 6 is the largest that there is.
    exponents_FG = torch.frexp(_not_zero(grouped_FGd.abs().amax(-1)) / 3.5).exponent.sub_(1).clamp_(-126, 127)
    scaled_FGd = torch.ldexp(grouped_FGd, -exponents_FG.unsqueeze(-1))
    codes_FGd = torch.signbit(scaled_FGd).to(torch.uint8) << 3
    magnitudes = scaled_FGd.abs_()
    for edge, belongs_above in FLOAT4_EDGES:
        codes_FGd += magnitudes >= edge if belongs_above else magnitudes > edge
    pairs = codes_FGd.flatten(1).unflatten(1, (-1, 2))
    return {
        "weight_packed": pairs[..., 0] | pairs[..., 1] << 4,
        "weight_scale": (exponents_FG + 127).to(torch.uint8),
    }


def _not_zero(values: torch.Tensor) -> torch.Tensor:
    """A small number in the place of 0: what is scaled is 0 all the same."""
    return torch.where(values == 0, torch.finfo(values.dtype).eps, values)
