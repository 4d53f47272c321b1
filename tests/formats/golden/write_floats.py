"""Formats of small floats against the libraries that define them, and what tests/formats keeps of that.

    python tests/formats/golden/write_floats.py 200        compares so many random settings of each format
    python tests/formats/golden/write_floats.py --write    writes floats.safetensors, a few settings of each

Needs compressed-tensors 0.20.0, bitsandbytes 0.50.2 and nvidia-modelopt 0.47.0 (of that the source alone).
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # support
from support.float_formats import FLOATS, GOLDEN
from support.golden_cases import Case, run, same_bits

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # for the generic kernel of bitsandbytes, which is the same without it
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
E4M3 = torch.float8_e4m3fn
DRAW = Random(1)


def size(unit: int, most: int) -> int:
    return unit * DRAW.randint(1, most)


def e4m3(*shape: int) -> torch.Tensor:
    """Any but the two that are no number."""
    return torch.randint(0, 256, shape, dtype=torch.uint8).bitwise_and(0xFE).view(E4M3)


def positive_e4m3(*shape: int) -> torch.Tensor:
    return torch.randint(1, 127, shape, dtype=torch.uint8).view(E4M3)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def scheme(**weights: Any) -> Any:
    quantization = importlib.import_module("compressed_tensors.quantization")
    return quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**weights))


def compressed(name: str, parts: dict[str, torch.Tensor], **weights: Any) -> torch.Tensor:
    """What the compressor of that name makes of these parts."""
    compressors = importlib.import_module("compressed_tensors.compressors")
    compressor = compressors.BaseCompressor.get_value_from_registry(name)
    decoded: torch.Tensor = compressor.decompress(parts, scheme(**weights))["weight"]
    return decoded


def in_float32(decode: Callable[[torch.dtype], torch.Tensor]) -> torch.Tensor:
    """What a library decodes to the dtype that it is asked for, when that is cast from fp32."""
    decoded = decode(torch.float32)
    if not all(same_bits(decode(dtype), decoded.to(dtype)) for dtype in FLOAT_DTYPES):
        raise ValueError("it decodes in another dtype")
    return decoded


def compressed_fp8() -> Case:
    rows, columns = DRAW.randint(1, 40), DRAW.randint(1, 60)
    strategy, dtype = DRAW.choice(("tensor", "channel", "block")), DRAW.choice(FLOAT_DTYPES)
    block = (DRAW.randint(1, 16), DRAW.randint(1, 24))
    grids = {"tensor": (1,), "channel": (rows, 1), "block": (-(-rows // block[0]), -(-columns // block[1]))}
    blocks = {"tensor": (None, None), "channel": (1, None), "block": block}
    parts = {"weight": e4m3(rows, columns), "weight_scale": torch.rand(grids[strategy]).to(dtype)}
    structure = [*block] if strategy == "block" else None
    decoded = compressed(
        "float-quantized", parts, num_bits=8, type="float", strategy=strategy, block_structure=structure
    )
    return Case("compressed-tensors FP8", (rows, columns), parts, decoded, {"block": blocks[strategy]})


def compressed_mxfp4() -> Case:
    rows, columns = DRAW.randint(1, 40), size(32, 5)
    scales = torch.randint(0, 255, (rows, columns // 32), dtype=torch.uint8)
    parts = {"weight_packed": bytes_of(rows, columns // 2), "weight_scale": scales}
    decoded = compressed(
        "mxfp4-pack-quantized", parts, num_bits=4, type="float", strategy="group", group_size=32, symmetric=True
    )
    return Case("compressed-tensors MXFP4", (rows, columns), parts, decoded)


def compressed_nvfp4() -> Case:
    rows, columns = DRAW.randint(1, 40), size(16, 9)
    parts = {
        "weight_packed": bytes_of(rows, columns // 2),
        "weight_scale": positive_e4m3(rows, columns // 16),
        "weight_global_scale": torch.rand(1) * 10 ** DRAW.uniform(-3, 5),
    }
    decoded = compressed(
        "nvfp4-pack-quantized", parts, num_bits=4, type="float", strategy="tensor_group", group_size=16
    )
    return Case("compressed-tensors NVFP4", (rows, columns), parts, decoded)


def modelopt_nvfp4() -> Case:
    rows, columns = DRAW.randint(1, 40), size(16, 9)
    parts = {
        "weight": bytes_of(rows, columns // 2),
        "weight_scale": positive_e4m3(rows, columns // 16),
        "weight_scale_2": torch.rand(DRAW.choice(((), (1,)))) * 10 ** DRAW.uniform(-5, 1),
    }
    library = importlib.import_module("modelopt.torch.quantization.qtensor.nvfp4_tensor").NVFP4QTensor
    stored = library((rows, columns), torch.bfloat16, parts["weight"])
    said = {"scale": parts["weight_scale"], "double_scale": parts["weight_scale_2"], "block_sizes": {-1: 16}}
    decoded = in_float32(lambda dtype: stored.dequantize(**said, dtype=dtype))
    return Case("ModelOpt NVFP4", (rows, columns), parts, decoded)


def modelopt_fp8() -> Case:
    shape = DRAW.randint(1, 40), DRAW.randint(1, 60)
    parts = {"weight": e4m3(*shape), "weight_scale": torch.rand(DRAW.choice(((), (1,))))}
    library = importlib.import_module("modelopt.torch.quantization.qtensor.fp8_tensor").FP8QTensor
    stored = library(shape, torch.float32, parts["weight"])
    return Case("ModelOpt FP8", shape, parts, stored.dequantize(scale=parts["weight_scale"]))


def nf4() -> Case:
    library = importlib.import_module("bitsandbytes.functional")
    dtype, block = DRAW.choice(FLOAT_DTYPES), DRAW.choice((32, 64, 128, 256, 512, 1024, 2048, 4096))
    shape = DRAW.choice(((DRAW.randint(2, 90), DRAW.randint(1, 120)), (size(16, 8), size(16, 9))))
    is_double = DRAW.random() < 0.5
    packed, state = library.quantize_4bit(
        torch.randn(shape).to(dtype), blocksize=block, quant_type="nf4", compress_statistics=is_double
    )
    parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    decoded = library.dequantize_4bit(packed, state)
    if shape[1] % 16 == 0 and shape[1] % block:  # its kernel for AVX-512 takes wrong scales there (findings)
        generic = importlib.import_module("bitsandbytes.backends.default.ops")._dequantize_4bit_compute
        scales = library.dequantize_blockwise(state.absmax, state.state2) + state.offset if is_double else state.absmax
        decoded = generic(packed.flatten(), scales, state.code, block, shape, dtype)
    return Case("bitsandbytes nf4", shape, {"weight": packed, **parts}, decoded, {"is_double": is_double})


def gpt_oss() -> Case:
    rows, groups = DRAW.randint(1, 40), DRAW.randint(1, 5)
    parts = {"_blocks": bytes_of(rows, groups, 16), "_scales": torch.randint(0, 255, (rows, groups), dtype=torch.uint8)}
    library = importlib.import_module("transformers.integrations.mxfp4")
    stored = (parts["_blocks"][None], parts["_scales"][None])
    decoded = in_float32(lambda dtype: library.convert_moe_packed_tensors(*stored, dtype=dtype))
    return Case("gpt-oss MXFP4", (rows, groups * 32), parts, decoded[0].T.contiguous())


def transformers_fp8() -> Case:
    """Blocks that divide the matrix: others it decodes wrongly."""
    block = DRAW.choice(((None, None), (DRAW.randint(1, 16), DRAW.randint(1, 24)), (128, 128)))
    rows, columns = (DRAW.randint(1, 3) * one if one else DRAW.randint(1, 60) for one in block)
    grid = (1, 1) if block[0] is None else (rows // block[0], columns // block[1])
    kind = DRAW.choice((torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu))
    scales = torch.randint(100, 140, grid, dtype=torch.uint8)
    if kind is torch.float8_e8m0fnu:
        scales = scales.view(kind)
    elif kind is not torch.uint8:
        scales = torch.rand(grid).to(kind)
    ending = DRAW.choice(("weight_scale_inv", "scale"))
    parts = {"weight": e4m3(rows, columns), ending: scales}
    library = importlib.import_module("transformers.integrations.finegrained_fp8")
    decoded = in_float32(lambda dtype: library.Fp8Dequantize(None)._dequantize_one(parts["weight"], scales, dtype))
    return Case("transformers FP8", (rows, columns), parts, decoded, {"block": block})


MAKERS: tuple[Callable[[], Case], ...] = (
    transformers_fp8,
    compressed_fp8,
    modelopt_fp8,
    gpt_oss,
    compressed_mxfp4,
    compressed_nvfp4,
    modelopt_nvfp4,
    nf4,
)


if __name__ == "__main__":
    run(sys.argv[1], MAKERS, FLOATS, GOLDEN)
