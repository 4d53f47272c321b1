"""What llama.cpp is given of a checkpoint."""

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.formats.integers import IntegerMatrix
from pipeline.formats.packed_ints import PackedIntegers
from pipeline.tools.bench import llama_arm


def test_llama_cpp_gets_the_numbers_and_scales_of_int4() -> None:
    """As its Q4_0 is defined: of 32 numbers, byte i has number i low and number 16 + i high, behind their scale."""
    torch.manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (6, 32)).to(torch.int32)
    matrix = IntegerMatrix(PackedIntegers(4, 64, symmetric=True), (6, 256), (words, torch.rand(6, 4)), None)
    blocks = llama_arm.q4_0_blocks(matrix.encoded()).view(6, 8, 18)
    scales, pairs = blocks[..., :2].contiguous().view(torch.float16), blocks[..., 2:]
    numbers = torch.cat((pairs & 15, pairs >> 4), dim=-1).to(torch.float32) - 8
    torch.testing.assert_close((scales * numbers).view(6, 256), matrix.decoded(torch.float32), rtol=1e-3, atol=0)
    zeros = torch.zeros(1, 4, dtype=torch.int32)
    for others in (
        IntegerMatrix(PackedIntegers(4, 64, symmetric=False), (6, 256), (words, torch.rand(6, 4), zeros), None),
        IntegerMatrix(PackedIntegers(4, 16, symmetric=True), (6, 256), (words, torch.rand(6, 16)), None),
        IntegerMatrix(PackedIntegers(8, 64, symmetric=True), (6, 128), (words, torch.rand(6, 2)), None),
    ):
        with pytest.raises(ConfigError, match="need symmetric int4 in groups of a multiple of 32 columns, as convert"):
            llama_arm.q4_0_blocks(others.encoded())
