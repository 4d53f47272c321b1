"""Tiny random models, quantised by the formulas of each format, and their decoded weights in transformers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.quantised_families import FAMILIES
from transformers import PreTrainedModel

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FP4 = torch.tensor([1.0, -1.0]).outer(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])).flatten()
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down", "q_a", "q_b", "kv_a", "kv_b")
LAYERS = (*(f"{one}_proj" for one in PROJECTIONS), "w1", "w2", "w3")
Parts = dict[str, torch.Tensor]
"""By what ends their names in place of "weight"."""


@dataclass(frozen=True)
class Quantised:
    """What config.json says, and how a matrix [F, D] is stored: its parts, and what they mean, in fp32."""

    config: Mapping[str, Any]
    store: Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
    modules: tuple[str, ...] = LAYERS
    beside: Callable[[int], Parts] = lambda rows: {}
    """Tensors that change nothing, for a matrix of so many rows."""


def packed(values: torch.Tensor, bits: int = 4, dim: int = 1) -> torch.Tensor:
    """Unsigned values, int32 words of them along `dim`, the first in the lowest bits."""
    rows = values.movedim(dim, -1).long()
    words = rows.unflatten(-1, (-1, 32 // bits)) << torch.arange(0, 32, bits)
    return words.sum(-1).to(torch.int32).movedim(-1, dim).contiguous()


def spread(scales: torch.Tensor, columns: int) -> torch.Tensor:
    return scales.float().repeat_interleave(columns // scales.shape[1], 1)


def whole_numbers(
    weight: torch.Tensor, bits: int, group: int, symmetric: bool, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Unsigned values, scales [F, G], zero points [F, G], and what they mean, rounded to the dtype of the scales."""
    most = 2**bits - 1
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).to(dtype)
    zeros = torch.full(scales.shape, (most + 1) // 2) if symmetric else (-low / scales.float()).round().clamp(0, most)
    values = (weight / spread(scales, weight.shape[1]) + spread(zeros, weight.shape[1])).round().clamp(0, most)
    decoded = (values - spread(zeros, weight.shape[1])) * spread(scales, weight.shape[1])
    return [values, scales, zeros, decoded.to(dtype).float()]


def ct_packed(
    bits: int, symmetric: bool, group: int | None = GROUP
) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    def store(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        size = group or weight.shape[1]
        values, scales, zeros, decoded = whole_numbers(weight, bits, size, symmetric, torch.bfloat16)
        shape = torch.tensor(weight.shape)
        parts = {"weight_packed": packed(values, bits), "weight_scale": scales, "weight_shape": shape}
        return parts | ({} if symmetric else {"weight_zero_point": packed(zeros, bits, 0)}), decoded

    return store


def ct_integers(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    values, scales, _, decoded = whole_numbers(weight, 8, weight.shape[1], True, torch.float32)
    return {"weight": (values - 128).to(torch.int8), "weight_scale": scales}, decoded


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    values, scales, zeros, decoded = whole_numbers(weight, 4, GROUP, False, torch.float16)
    swapped = [one.T.unflatten(1, (-1, 8))[:, :, AWQ_ORDER].flatten(1) for one in (values, zeros)]
    parts = {"qweight": packed(swapped[0]), "qzeros": packed(swapped[1]), "scales": scales.T.contiguous()}
    return parts, decoded


def gptq(
    bits: int, version: int, symmetric: bool, ordered: bool
) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    def store(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        columns = weight.shape[1]
        order = torch.randperm(columns) if ordered else torch.arange(columns)
        values, scales, zeros, decoded = whole_numbers(weight[:, order], bits, GROUP, symmetric, torch.float16)
        if version == 1:
            zeros = zeros.clamp(min=1) - 1
            decoded = (values - spread(zeros + 1, columns)) * spread(scales, columns)
            decoded = decoded.half().float()
        back = order.argsort()
        parts = {
            "qweight": packed(values[:, back].T, bits, 0),
            "qzeros": packed(zeros.T, bits),
            "scales": scales.T.contiguous(),
            "g_idx": (torch.arange(columns) // GROUP)[back].to(torch.int32),
        }
        return parts, decoded[:, back]

    return store


def fp8(
    weight: torch.Tensor, block: tuple[int, int] | None, ending: str, shape: Callable[[torch.Tensor], Any] = lambda s: s
) -> tuple[Parts, torch.Tensor]:
    rows, columns = block or weight.shape  # scales in fp32 for blocks, the last of which are partial, or for all
    scales = torch.stack(
        [torch.stack([part.abs().amax() / 448 for part in band.split(columns, 1)]) for band in weight.split(rows)]
    )
    wide = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: weight.shape[0], : weight.shape[1]]
    values = (weight / wide).to(torch.float8_e4m3fn)
    return {"weight": values, ending: shape(scales)}, values.float() * wide


def fp8_blocks(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    return fp8(weight, (128, 128), "weight_scale_inv")


def one_scale(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    return fp8(weight, None, "weight_scale", torch.squeeze)


def nearest_fp4(values: torch.Tensor) -> torch.Tensor:
    return (values.unsqueeze(-1) - FP4).abs().argmin(-1)


def mxfp4(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    exponents = torch.floor(torch.log2(weight.unflatten(1, (-1, 32)).abs().amax(-1))) - 2
    codes = nearest_fp4(weight / spread(exponents.exp2(), weight.shape[1]))
    pairs = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    decoded = FP4[codes] * spread(exponents.exp2(), weight.shape[1])
    return {"weight_packed": pairs, "weight_scale": (exponents + 127).to(torch.uint8)}, decoded


def nvfp4(weight: torch.Tensor, divides: bool) -> tuple[Parts, torch.Tensor]:
    """compressed-tensors divides by the scale of the whole matrix, and rounds what is decoded to bf16."""
    whole = weight.abs().amax() / (6 * 448)
    scales = (weight.unflatten(1, (-1, 16)).abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    wide = spread(scales.float() / (1 / whole) if divides else scales.float() * whole, weight.shape[1])
    codes = nearest_fp4(weight / wide)
    pairs, decoded = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), FP4[codes] * wide
    if divides:
        parts = {"weight_packed": pairs, "weight_scale": scales, "weight_global_scale": (1 / whole).reshape(1)}
        return parts, decoded.bfloat16().float()
    return {"weight": pairs, "weight_scale": scales, "weight_scale_2": whole}, decoded


def nf4(nested: bool) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    def store(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        absmax = blocks.abs().amax(-1)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [*weight.shape]}
        parts: Parts = {"weight.quant_map": NF4}
        if nested:
            offset = absmax.mean().item()
            table = torch.linspace(-1, 1, 256)
            groups = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
            largest = groups.abs().amax(-1)
            codes = ((groups / largest[:, None]).unsqueeze(-1) - table).abs().argmin(-1)
            absmax_codes = codes.flatten()[: len(absmax)]
            absmax = (table[codes] * largest[:, None]).flatten()[: len(absmax)] + offset
            parts |= {"weight.absmax": absmax_codes.to(torch.uint8)}
            parts |= {"weight.nested_absmax": largest, "weight.nested_quant_map": table}
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
        else:
            parts["weight.absmax"] = absmax
        codes = ((blocks / absmax[:, None]).unsqueeze(-1) - NF4).abs().argmin(-1)
        decoded = (NF4[codes] * absmax[:, None]).flatten()[: weight.numel()].view(weight.shape)
        flat = codes.flatten()
        parts["weight"] = (flat[::2] << 4 | flat[1::2]).to(torch.uint8)[: -(-weight.numel() // 2)].unsqueeze(1)
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)
        return parts, decoded

    return store


def compressed_tensors(form: str, weights: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    targets, activations = more.pop("targets", ["Linear"]), more.pop("activations", None)
    group = {"targets": targets, "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        **more,
    }


_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
_INT8_ROWS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
_INT8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
_GPTQ = {"quant_method": "gptq", "group_size": GROUP}
_NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_FP4 = {"num_bits": 4, "type": "float", "symmetric": True}
_MODELOPT = {"quant_method": "modelopt", "ignore": ["lm_head"]}
_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
_INPUT_SCALE: Parts = {"input_scale": torch.tensor(0.5)}

FORMATS: dict[str, Quantised] = {
    "ct int4": Quantised(compressed_tensors("pack-quantized", _INT4), ct_packed(4, True)),
    "ct int4 asymmetric": Quantised(
        compressed_tensors("pack-quantized", {**_INT4, "symmetric": False}), ct_packed(4, False)
    ),
    "ct int8 rows": Quantised(compressed_tensors("pack-quantized", _INT8_ROWS), ct_packed(8, True, None)),
    "ct int8 rows, head and embedding": Quantised(
        compressed_tensors("pack-quantized", _INT8_ROWS, targets=["Linear", "Embedding"], ignore=[]),
        ct_packed(8, True, None),
        (*LAYERS, "lm_head", "embed_tokens"),
    ),
    "ct w8a8": Quantised(compressed_tensors("int-quantized", _INT8_ROWS, activations=_INT8), ct_integers),
    "awq": Quantised({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    "gptq": Quantised(
        {**_GPTQ, "bits": 4, "sym": True, "desc_act": False},
        gptq(4, 1, True, False),
        beside=lambda rows: {"bias": torch.zeros(rows)},
    ),
    "gptq 8 bits ordered": Quantised(
        {**_GPTQ, "bits": 8, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"}, gptq(8, 2, False, True)
    ),
    "gptq, head": Quantised({**_GPTQ, "bits": 4, "lm_head": True}, gptq(4, 1, True, False), (*LAYERS, "lm_head")),
    "fp8 blocks": Quantised({**_BLOCKS, "fmt": "e4m3", "activation_scheme": "dynamic"}, fp8_blocks),
    "fp8 blocks, head": Quantised({**_BLOCKS, "modules_to_not_convert": []}, fp8_blocks, (*LAYERS, "lm_head")),
    "fp8 one scale": Quantised(
        {"quant_method": "fp8", "ignored_layers": ["lm_head"]}, one_scale, beside=lambda rows: _INPUT_SCALE
    ),
    "ct fp8 rows": Quantised(
        compressed_tensors("float-quantized", {**_FLOAT8, "strategy": "channel"}),
        lambda weight: fp8(weight, (1, weight.shape[1]), "weight_scale"),
    ),
    "ct mxfp4": Quantised(
        compressed_tensors("mxfp4-pack-quantized", {**_FP4, "strategy": "group", "group_size": 32}), mxfp4
    ),
    "ct nvfp4": Quantised(
        compressed_tensors("nvfp4-pack-quantized", {**_FP4, "strategy": "tensor_group", "group_size": 16}),
        lambda weight: nvfp4(weight, divides=True),
    ),
    "modelopt nvfp4": Quantised(
        {**_MODELOPT, "quant_algo": "NVFP4"},
        lambda weight: nvfp4(weight, divides=False),
        beside=lambda rows: _INPUT_SCALE,
    ),
    "modelopt fp8": Quantised({**_MODELOPT, "quant_algo": "FP8"}, one_scale, beside=lambda rows: _INPUT_SCALE),
    "nf4": Quantised({**_NF4, "bnb_4bit_use_double_quant": False}, nf4(nested=False)),
    "nf4 nested": Quantised({**_NF4, "bnb_4bit_use_double_quant": True}, nf4(nested=True)),
}


def save(quantised: Quantised, family: str, folder: Path, **sizes: int) -> PreTrainedModel:
    """Write the checkpoint, whose plain tensors are fp32, and return the model of transformers with decoded weights."""
    model = tiny_models.randomised(FAMILIES[family](**sizes), seed=sum(family.encode()))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors, decoded = {}, load_file(file)
    torch.manual_seed(7)
    for name, tensor in [*decoded.items()]:
        module, _, last = name.rpartition(".")
        if last == "weight" and module.rpartition(".")[2].removesuffix("_with_mqa") in quantised.modules:
            parts, decoded[name] = quantised.store(tensor)
            parts = quantised.beside(len(tensor)) | parts
            tensors = {f"{module}.{ending}": part.contiguous() for ending, part in parts.items()} | tensors
        else:
            tensors[name] = tensor
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantised.config}))
    return type(model).from_pretrained(None, config=model.config, state_dict=decoded).eval()
