"""Formats of whole numbers against the libraries that define them, and what tests/formats keeps of that.

    python tests/formats/golden/write_integers.py 200        compares so many random settings of each format
    python tests/formats/golden/write_integers.py --write    writes integers.safetensors, a few settings of each

Needs compressed-tensors 0.20.1, or 0.18.0 for weight_g_idx too, and the sources of AutoAWQ 0.2.9 and gptqmodel 7.7.0.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # support
from support.golden_cases import Case, run
from support.integer_formats import GOLDEN, INTEGERS

DRAW = Random(1)
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPS = (8, 16, 32, 64, 128)


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape).to(torch.int32)


def scales(*shape: int) -> torch.Tensor:
    return (torch.randn(shape) * 0.01).to(DRAW.choice(SCALE_DTYPES))


def compressed(name: str, parts: dict[str, torch.Tensor], scheme: Any) -> torch.Tensor:
    """What the compressor of that name makes of these parts."""
    compressors = importlib.import_module("compressed_tensors.compressors")
    decoded: torch.Tensor = compressors.BaseCompressor.get_value_from_registry(name).decompress({**parts}, scheme)
    return decoded["weight"]


def scheme(**weights: Any) -> Any:
    quantization = importlib.import_module("compressed_tensors.quantization")
    return quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(type="int", **weights)
    )


def reads_orders() -> bool:
    major, minor = importlib.import_module("compressed_tensors").__version__.split(".")[:2]
    return (int(major), int(minor)) < (0, 19)


def columns_in(group: int | None) -> tuple[int, int]:
    """How many columns, and how many groups of them."""
    groups = DRAW.randint(1, 4) if group else 1
    return (group * groups if group else DRAW.randint(1, 200)), groups


def packed() -> Case:
    """More rows than 8: with fewer the library fails where there are zero points."""
    bits, group, symmetric = DRAW.choice((4, 8)), DRAW.choice((None, *GROUPS)), DRAW.random() < 0.5
    rows, per_word, (columns, groups) = DRAW.randint(9, 60), 32 // bits, columns_in(group)
    ordered = group is not None and reads_orders() and DRAW.random() < 0.7
    parts = {
        "weight_packed": words(rows, -(-columns // per_word)),
        "weight_scale": scales(rows, groups),
        "weight_shape": torch.tensor((rows, columns)),
    }
    if not symmetric:
        parts["weight_zero_point"] = words(-(-rows // per_word), groups)
    if ordered:
        order = torch.arange(columns, dtype=torch.int32) // (columns // groups)
        parts["weight_g_idx"] = order[torch.randperm(columns)] if DRAW.random() < 0.8 else order
    said: dict[str, Any] = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    said |= {"actorder": "group"} if ordered else {}
    decoded = compressed("pack-quantized", parts, scheme(num_bits=bits, symmetric=symmetric, **said))
    options = {"bits": bits, "group": group, "symmetric": symmetric, "ordered": ordered}
    return Case("pack-quantized", (rows, columns), parts, decoded, options)


def in_bytes() -> Case:
    strategy, symmetric = DRAW.choice(("tensor", "channel", "group")), DRAW.random() < 0.5
    group = DRAW.choice(GROUPS) if strategy == "group" else None
    rows, (columns, groups) = DRAW.randint(1, 60), columns_in(group)
    shape = (1,) if strategy == "tensor" else (rows, groups)
    parts = {"weight": words(rows, columns).to(torch.int8), "weight_scale": scales(*shape)}
    if not symmetric:
        parts["weight_zero_point"] = words(*shape).to(torch.int8)
    decoded = compressed(
        "int-quantized", parts, scheme(num_bits=8, symmetric=symmetric, strategy=strategy, group_size=group)
    )
    options = {"group": group, "symmetric": symmetric, "per_tensor": strategy == "tensor"}
    return Case("int-quantized", (rows, columns), parts, decoded, options)


def awq() -> Case:
    """The converter of compressed-tensors agrees with AutoAWQ; with 8 rows it fails."""
    group = DRAW.choice((None, *GROUPS))
    rows, (columns, groups) = 8 * DRAW.randint(2, 9), columns_in(group)
    parts = {
        "qweight": words(columns, rows // 8),
        "qzeros": words(groups, rows // 8),
        "scales": scales(groups, rows),
    }
    width = columns // groups
    decoded = autoawq().dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, width).T
    module = importlib.import_module("compressed_tensors.entrypoints.convert.converters.autoawq")
    converter = module.AutoAWQConverter(bits=4, group_size=width)
    converted = converter.process({f"q.{name}": part for name, part in parts.items()})
    asked = scheme(num_bits=4, symmetric=False, strategy="group", group_size=width)
    other = compressed("pack-quantized", {name[2:]: part for name, part in converted.items()}, asked)
    if not torch.equal(decoded, other):
        raise AssertionError("AutoAWQ and compressed-tensors differ")
    return Case("AWQ", (rows, columns), parts, decoded, {"group": group})


def autoawq() -> ModuleType:
    """One file of it: the package itself needs an old transformers."""
    (folder,) = (Path(path) for path in sys.path if (Path(path) / "awq").is_dir())
    spec = importlib.util.spec_from_file_location("packing_utils", folder / "awq" / "utils" / "packing_utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gptq() -> Case:
    """Half of them with columns in the order of their groups, and half of the sizes divide by nothing."""
    bits, group, version = DRAW.choice((4, 8)), DRAW.choice((None, 16, 32, 64, 128)), DRAW.choice((1, 2))
    rows = DRAW.randint(1, 60)
    columns = columns_in(group)[0] if DRAW.random() < 0.5 else DRAW.randint(1, 200)
    linear = importlib.import_module("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    formats = importlib.import_module("gptqmodel.quantization").FORMAT
    layer = linear(
        bits=bits, group_size=group or -1, sym=False, desc_act=False, in_features=columns, out_features=rows,
        format=(formats.GPTQ, formats.GPTQ_V2)[version - 1],
    )  # fmt: skip
    layer.qweight.copy_(words(*layer.qweight.shape))
    layer.qzeros.copy_(words(*layer.qzeros.shape))
    layer.scales = scales(*layer.scales.shape)
    if DRAW.random() < 0.5:
        layer.g_idx.copy_(layer.g_idx[torch.randperm(columns)])
    parts = {name: getattr(layer, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")}
    if version == 1:
        convert = importlib.import_module("gptqmodel.utils.model").convert_gptq_v1_to_v2_format_module
        convert(layer, bits, torch.int32)
    decoded = linear._dequantize_weight_cached_248(layer.eval()).T
    return Case("GPTQ", (rows, columns), parts, decoded, {"bits": bits, "group": group, "version": version})


MAKERS: tuple[Callable[[], Case], ...] = (packed, in_bytes, awq, gptq)

if __name__ == "__main__":
    run(sys.argv[1], MAKERS, INTEGERS, GOLDEN)
