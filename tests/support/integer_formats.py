"""The formats of whole numbers, by the names of settings that are kept of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.formats.awq import Awq
from pipeline.formats.gptq import Gptq
from pipeline.formats.matrix import Format
from pipeline.formats.packed_ints import Integers, PackedIntegers

GOLDEN = Path(__file__).parents[1] / "formats" / "golden" / "integers.safetensors"
INTEGERS: Mapping[str, Callable[..., Format]] = {
    "pack-quantized": PackedIntegers,
    "int-quantized": Integers,
    "AWQ": Awq,
    "GPTQ": Gptq,
}
