"""Formats of small floats against the libraries that define them, and what tests/formats keeps of that.

    python tests/formats/golden/write_floats.py 200        compares so many random settings of each format
    python tests/formats/golden/write_floats.py --write    writes floats.safetensors, a few settings of each

Needs compressed-tensors 0.20.0, bitsandbytes 0.50.2 and nvidia-modelopt 0.47.0 (of that the source alone).
"""

import importlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # support
from support.float_formats import FLOATS, Case, check

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # for the generic kernel of bitsandbytes, which is the same without it
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
E4M3 = torch.float8_e4m3fn
chosen = random.Random(1)
GOLDEN = Path(__file__).parent / "floats.safetensors"


def size(unit: int, most: int) -> int:
    return unit * chosen.randint(1, most)


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


def compressed_fp8() -> Case:
    rows, columns = chosen.randint(1, 40), chosen.randint(1, 60)
    strategy, dtype = chosen.choice(("tensor", "channel", "block")), chosen.choice(FLOAT_DTYPES)
    block = (chosen.randint(1, 16), chosen.randint(1, 24))
    grids = {"tensor": (1,), "channel": (rows, 1), "block": (-(-rows // block[0]), -(-columns // block[1]))}
    blocks = {"tensor": (None, None), "channel": (1, None), "block": block}
    parts = {"weight": e4m3(rows, columns), "weight_scale": torch.rand(grids[strategy]).to(dtype)}
    structure = [*block] if strategy == "block" else None
    decoded = compressed(
        "float-quantized", parts, num_bits=8, type="float", strategy=strategy, block_structure=structure
    )
    return Case("compressed-tensors FP8", (rows, columns), parts, decoded, {"block": blocks[strategy]})


def compressed_mxfp4() -> Case:
    rows, columns = chosen.randint(1, 40), size(32, 5)
    scales = torch.randint(0, 255, (rows, columns // 32), dtype=torch.uint8)
    parts = {"weight_packed": bytes_of(rows, columns // 2), "weight_scale": scales}
    decoded = compressed(
        "mxfp4-pack-quantized", parts, num_bits=4, type="float", strategy="group", group_size=32, symmetric=True
    )
    return Case("compressed-tensors MXFP4", (rows, columns), parts, decoded)


def compressed_nvfp4() -> Case:
    rows, columns = chosen.randint(1, 40), size(16, 9)
    parts = {
        "weight_packed": bytes_of(rows, columns // 2),
        "weight_scale": positive_e4m3(rows, columns // 16),
        "weight_global_scale": torch.rand(1) * 10 ** chosen.uniform(-3, 5),
    }
    decoded = compressed(
        "nvfp4-pack-quantized", parts, num_bits=4, type="float", strategy="tensor_group", group_size=16
    )
    return Case("compressed-tensors NVFP4", (rows, columns), parts, decoded)


def modelopt_nvfp4() -> Case:
    rows, columns, dtype = chosen.randint(1, 40), size(16, 9), chosen.choice(FLOAT_DTYPES)
    parts = {
        "weight": bytes_of(rows, columns // 2),
        "weight_scale": positive_e4m3(rows, columns // 16),
        "weight_scale_2": torch.rand(chosen.choice(((), (1,)))) * 10 ** chosen.uniform(-5, 1),
    }
    library = importlib.import_module("modelopt.torch.quantization.qtensor.nvfp4_tensor").NVFP4QTensor
    stored = library((rows, columns), dtype, parts["weight"])
    decoded = stored.dequantize(
        scale=parts["weight_scale"], double_scale=parts["weight_scale_2"], block_sizes={-1: 16}, dtype=dtype
    )
    return Case("ModelOpt NVFP4", (rows, columns), parts, decoded)


def modelopt_fp8() -> Case:
    shape = chosen.randint(1, 40), chosen.randint(1, 60)
    parts = {"weight": e4m3(*shape), "weight_scale": torch.rand(chosen.choice(((), (1,))))}
    library = importlib.import_module("modelopt.torch.quantization.qtensor.fp8_tensor").FP8QTensor
    stored = library(shape, torch.float32, parts["weight"])
    return Case("ModelOpt FP8", shape, parts, stored.dequantize(scale=parts["weight_scale"]))


def nf4() -> Case:
    library = importlib.import_module("bitsandbytes.functional")
    dtype, block = chosen.choice(FLOAT_DTYPES), chosen.choice((32, 64, 128, 256, 512, 1024, 2048, 4096))
    shape = chosen.choice(((chosen.randint(2, 90), chosen.randint(1, 120)), (size(16, 8), size(16, 9))))
    is_double = chosen.random() < 0.5
    packed, state = library.quantize_4bit(
        torch.randn(shape).to(dtype), blocksize=block, quant_type="nf4", compress_statistics=is_double
    )
    parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    decoded = library.dequantize_4bit(packed, state)
    if (
        shape[1] % 16 == 0 and shape[1] % block
    ):  # there its kernel for AVX-512 takes wrong scales; this is its generic one
        generic = importlib.import_module("bitsandbytes.backends.default.ops")._dequantize_4bit_compute
        scales = library.dequantize_blockwise(state.absmax, state.state2) + state.offset if is_double else state.absmax
        decoded = generic(packed.flatten(), scales, state.code, block, shape, dtype)
    return Case("bitsandbytes nf4", shape, {"weight": packed, **parts}, decoded, {"is_double": is_double})


def gpt_oss() -> Case:
    rows, groups = chosen.randint(1, 40), chosen.randint(1, 5)
    parts = {"_blocks": bytes_of(rows, groups, 16), "_scales": torch.randint(0, 255, (rows, groups), dtype=torch.uint8)}
    library = importlib.import_module("transformers.integrations.mxfp4")
    dtype = chosen.choice(FLOAT_DTYPES)
    decoded = library.convert_moe_packed_tensors(parts["_blocks"][None], parts["_scales"][None], dtype=dtype)
    return Case("gpt-oss MXFP4", (rows, groups * 32), parts, decoded[0].T.contiguous())


def transformers_fp8() -> Case:
    """Blocks that divide the matrix: others it decodes wrongly."""
    block = chosen.choice(((None, None), (chosen.randint(1, 16), chosen.randint(1, 24)), (128, 128)))
    rows, columns = (chosen.randint(1, 3) * one if one else chosen.randint(1, 60) for one in block)
    grid = (1, 1) if block[0] is None else (rows // block[0], columns // block[1])
    kind = chosen.choice((torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu))
    scales = torch.randint(100, 140, grid, dtype=torch.uint8)
    if kind is torch.float8_e8m0fnu:
        scales = scales.view(kind)
    elif kind is not torch.uint8:
        scales = torch.rand(grid).to(kind)
    ending = chosen.choice(("weight_scale_inv", "scale"))
    parts, dtype = {"weight": e4m3(rows, columns), ending: scales}, chosen.choice(FLOAT_DTYPES)
    library = importlib.import_module("transformers.integrations.finegrained_fp8")
    decoded = library.Fp8Dequantize(None)._dequantize_one(parts["weight"], scales, dtype)
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


def small(make: Callable[[], Case], count: int) -> list[Case]:
    """Of many random settings, small ones that differ in their options."""
    found: dict[str, Case] = {}
    for case in (make() for _ in range(500)):
        if min(case.shape) > 4 and 200 < case.decoded.numel() < 500:
            kinds = [tuple(part.shape) == () or str(part.dtype) for part in case.parts.values()]
            found.setdefault(f"{[*case.options][:1]} {case.decoded.dtype} {kinds} {len(case.parts)}", case)
    return [*found.values()][:count]


def main(argument: str) -> None:
    torch.manual_seed(1)
    if argument == "--write":
        cases = [case for make in MAKERS for case in small(make, 3)]
        tensors = {f"{index}.{name}": part for index, case in enumerate(cases) for name, part in case.tensors.items()}
        said = [{"format": case.format, "shape": case.shape, "options": case.options} for case in cases]
        save_file({name: part.contiguous() for name, part in tensors.items()}, GOLDEN, {"cases": json.dumps(said)})
        print(f"{len(cases)} settings, {GOLDEN.stat().st_size} bytes")
        return
    with tempfile.TemporaryDirectory() as folder:
        for make in MAKERS:
            cases = [make() for _ in range(int(argument))]
            for case in cases:
                check(case, Path(folder))
            print(f"{cases[0].format}: {len(cases)} settings, {len({case.shape for case in cases})} shapes: equal")
    print(f"of {len(FLOATS)} formats")


if __name__ == "__main__":
    main(sys.argv[1])
