"""What compressed-tensors says, as llm-compressor writes it: groups of modules, each with a format and its options."""

import re
from collections.abc import Callable

from pipeline.formats.dense import Dense
from pipeline.formats.fp4 import MXFP4, NVFP4, Float4
from pipeline.formats.fp8 import Float8
from pipeline.formats.matrix import Format
from pipeline.formats.packed_ints import Integers, PackedIntegers
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import EMBEDDING, LINEAR, Names, Pattern, Quantization, compiled, refused

CLASSES = {"Linear": LINEAR, "Embedding": EMBEDDING}
"""Those of the modules that have weights to be quantised."""
ORDERED = (True, "group", "dynamic")
"""What `actorder` says where the columns of a group lie anywhere."""


def read(settings: JsonObject) -> Quantization:
    """A name comes before a pattern, and that before a class, as there. Raises ConfigError."""
    if settings.section("transform_config") or settings.section("sparsity_config").text("format", "dense") != "dense":
        raise refused(settings, "transform_config" if settings.section("transform_config") else "sparsity_config")
    formats: dict[str, Format] = {}
    activations: set[str] = set()
    for group in settings.sections("config_groups").values():
        formats |= dict.fromkeys(group.texts("targets"), _format(group, settings))
        activations |= _activations(group)
    if not formats:
        raise refused(settings, "config_groups")
    names = [name for name in settings.texts("ignore") if not name.startswith("re:") and name not in CLASSES]
    patterns = [_pattern(settings, "ignore", name) for name in settings.texts("ignore") if name not in names]
    ignored = [(pattern, Dense()) for pattern in (Names(frozenset(names)), *patterns)]
    named = sorted((name for name in formats if name not in CLASSES), key=lambda name: ("re:" in name, name))
    classes = [name for name in formats if name in CLASSES]
    rules = [(_pattern(settings, "config_groups", name), formats[name]) for name in (*named, *classes)]
    return Quantization((*ignored, *rules), ", ".join(sorted(activations)))


def _pattern(settings: JsonObject, key: str, target: str) -> Pattern:
    if target in CLASSES:
        return re.compile(CLASSES[target])
    if target.startswith("re:"):
        return compiled(settings, key, target.removeprefix("re:"))
    return re.compile(rf"{re.escape(target)}$")


def _activations(group: JsonObject) -> set[str]:
    found = group.section("input_activations")
    return {f"{found.text('type', 'int')}{found.count('num_bits')}"} if found else set()


def _format(group: JsonObject, settings: JsonObject) -> Format:
    """That of the weights of a group, which says how they are stored unless all groups store them alike."""
    weights = group.section("weights")
    if not weights:
        return Dense()  # only activations are quantised
    said = group if group.get("format") is not None else settings
    stored, kind, strategy = said.text("format"), weights.text("type", "int").lower(), _strategy(weights)
    if stored not in FORMATS:
        raise refused(said, "format")
    kinds, bits, strategies, make = FORMATS[stored]
    for key, have, known in (("type", kind, kinds), ("strategy", strategy, strategies)):
        if have not in known:
            raise refused(weights.with_absent({key: have}), key)
    if weights.count("num_bits") not in bits:
        raise refused(weights, "num_bits")
    if weights.get("dynamic"):
        raise refused(weights, "dynamic")
    if kind == "float" and not weights.flag("symmetric", default=True):
        raise refused(weights, "symmetric")
    return make(weights, kind, strategy)


def _strategy(weights: JsonObject) -> str:
    """What a scale is for; the size of a group tells where nothing is said."""
    size = weights.get("group_size")
    return weights.text("strategy", "tensor" if size is None else "channel" if size == -1 else "group").lower()


def _packed(weights: JsonObject, kind: str, strategy: str) -> Format:
    order = weights.get("actorder")
    if order not in (None, False, "weight", "static", *ORDERED):
        raise refused(weights, "actorder")
    return PackedIntegers(
        bits=weights.count("num_bits"),
        group=weights.count("group_size") if strategy == "group" else None,
        symmetric=weights.flag("symmetric", default=True),
        ordered=order in ORDERED,
    )


def _bytes(weights: JsonObject, kind: str, strategy: str) -> Format:
    columns = weights.count("group_size") if strategy == "group" else None
    if kind == "int":
        symmetric = weights.flag("symmetric", default=True)
        return Integers(columns, symmetric, strategy == "tensor", weights.count("num_bits"))
    rows = None if strategy == "tensor" else 1
    if strategy == "block":
        rows, columns = weights.counts("block_structure", 2)
    return Float8("compressed-tensors", ("weight_scale",), rows, columns, rounds_to_scales=True)


def _mxfp4(weights: JsonObject, kind: str, strategy: str) -> Format:
    return _in_groups(weights, MXFP4)


def _nvfp4(weights: JsonObject, kind: str, strategy: str) -> Format:
    return _in_groups(weights, NVFP4)


def _in_groups(weights: JsonObject, found: Float4) -> Format:
    if weights.get("group_size") != found.group:
        raise refused(weights, "group_size")
    return found


FORMATS: dict[
    str, tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...], Callable[[JsonObject, str, str], Format]]
] = {
    "pack-quantized": (("int",), (4, 8), ("group", "channel"), _packed),
    "int-quantized": (("int",), (4, 8), ("tensor", "channel", "group"), _bytes),
    "float-quantized": (("float",), (8,), ("tensor", "channel", "group", "block"), _bytes),
    "naive-quantized": (("int", "float"), (8,), ("tensor", "channel", "group", "block"), _bytes),
    "mxfp4-pack-quantized": (("float",), (4,), ("group",), _mxfp4),
    "nvfp4-pack-quantized": (("float",), (4,), ("tensor_group",), _nvfp4),
}
"""By name: types, bits and strategies that are read, and what they are read as."""
