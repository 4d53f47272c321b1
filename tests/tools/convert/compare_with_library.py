"""Compares converted folders with compressed-tensors: its scales, what it decodes, and transformers that reads them.

    python tests/tools/convert/compare_with_library.py

Needs compressed-tensors 0.20.1 and accelerate 1.15 beside transformers 5.24. The library divides in the dtype of the
weights, and so rounds some quotients twice: of its codes some differ, by one. Its MXFP4 decodes to bfloat16
whatever the model computes in, so that it is compared only as decoded once.
"""

import asyncio
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # support
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from support import tiny_models
from support.quantised_families import DENSE, FAMILIES, VOCABULARY_SIZE
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from pipeline import Model
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.written_formats import FORMAT_NAMES, written_format
from pipeline.groups.groups import plan_groups
from pipeline.models.model_config import read_config
from pipeline.models.specs import expert_specs, group_specs
from pipeline.tools.convert.convert import convert

STEPS, MOST_APART = 32, 1e-4
SIZES = {"hidden_size": 128, "intermediate_size": 384}
OF_EXPERTS = {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
WITH_EXPERTS = ("qwen2_moe", "qwen3_moe")
COMPUTED = (False, True)
"""With the stored weights, and with decoded ones."""


def compare_matrices(dense: Path, converted: Path) -> str:
    """Raises AssertionError where scales, or what is decoded, are not those of the library."""
    config = read_config(converted)
    said = QuantizationConfig.model_validate(config_of(converted)["quantization_config"])
    scheme = said.config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(said.format)
    weights, stored = load_file(dense / "model.safetensors"), load_file(converted / "model.safetensors")
    with open_checkpoint(converted) as checkpoint:
        specs = group_specs(config) | expert_specs(config)
        groups = plan_groups(specs, checkpoint, config.quantization.format_of)
    matrices, same, codes = 0, 0, 0
    for group in (*groups.groups, *groups.experts):
        views = {one.short: stored[one.name] for one in group.tensors if one.name in stored}
        for matrix in group.matrices:
            stem = matrix.tensors[0].name.rpartition(".")[0]
            if f"{stem}.weight_scale" not in stored or matrix.rows != len(stored[f"{stem}.weight_scale"]):
                continue
            parts = {name.removeprefix(f"{stem}."): one for name, one in stored.items() if name.startswith(f"{stem}.")}
            weight = weights[f"{stem}.weight"]
            grouped = weight.unflatten(1, (-1, scheme.weights.group_size or weight.shape[1]))
            scales, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
            made = compressor.compress({"weight": weight, "weight_scale": scales}, scheme)
            assert torch.equal(made["weight_scale"].view(torch.uint8), parts["weight_scale"].view(torch.uint8)), stem
            key = "weight_packed" if "weight_packed" in parts else "weight"
            assert made[key].dtype == parts[key].dtype
            same += int((made[key].view(torch.uint8) == parts[key].view(torch.uint8)).sum())
            codes += parts[key].view(torch.uint8).numel()
            decoded = compressor.decompress(parts, scheme)["weight"]
            assert torch.equal(matrix.over(views).decoded(decoded.dtype), decoded), stem
            matrices += 1
    return f"{matrices} matrices: scales and decoded numbers equal, {same / codes:.2%} of the bytes of its codes"


def config_of(folder: Path) -> dict[str, object]:
    """What config.json says."""
    return dict(json.loads((folder / "config.json").read_text()))


async def compare_models(converted: Path, *, dequantize: bool) -> float:
    """The largest difference of a log-probability from transformers; infinite where a token differs."""
    settings = config_of(converted)["quantization_config"]
    quantised = CompressedTensorsConfig(**settings, dequantize=True) if dequantize else None
    more = {"quantization_config": quantised} if dequantize else {}
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32, **more).eval()
    model = model.float() if dequantize else model  # experts in MXFP4 stay as they were decoded
    expected = tiny_models.greedy(model, tiny_models.PROMPT, STEPS)
    size = VOCABULARY_SIZE
    async with Model.open(converted, device="cpu", dtype="float32") as ours:
        output = await ours.generate(tiny_models.PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=size)
    if [*output.token_ids] != expected.token_ids or output.logprobs is None:
        return float("inf")
    return max(
        (torch.tensor([said[token_id] for token_id in range(size)]) - step).abs().max().item()
        for said, step in zip(output.logprobs, expected.logprobs, strict=True)
    )


def main() -> int:
    """Print a line for each format, family and dtype; 1 where one is too far apart."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    worst = 0.0
    for name in FORMAT_NAMES:
        for family in (*DENSE, *WITH_EXPERTS):
            sizes = SIZES | (OF_EXPERTS if family in WITH_EXPERTS else {})
            for dtype in (torch.float32, torch.bfloat16):
                with tempfile.TemporaryDirectory() as folder:
                    dense, out = Path(folder, "dense"), Path(folder, "converted")
                    tiny_models.randomised(FAMILIES[family](**sizes), seed=5).to(dtype).save_pretrained(dense)
                    convert(dense, out, written_format(name))
                    print(f"{name:6} {family:11} {dtype}: {compare_matrices(dense, out)}")
                    if dtype == torch.float32:
                        found = [
                            asyncio.run(compare_models(out, dequantize=each)) for each in COMPUTED[name == "mxfp4" :]
                        ]
                        worst = max(worst, *found)
                        print(f"{name:6} {family:11} tokens equal, log-probabilities within {max(found):.1e}")
    return int(worst > MOST_APART)


if __name__ == "__main__":
    sys.exit(main())
