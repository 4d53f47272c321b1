"""Teach Penstock a family of your own: Arcee's layers are Llama's, whose feed-forward has no gate but relu squared."""

import asyncio
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline import Model
from pipeline.checkpoints.shard_layout import model_specs
from pipeline.models.families.family import Family
from pipeline.models.layer_settings import read_attention, read_layer
from pipeline.models.model_config import read_config

FAMILY = Family(
    name="arcee",
    architecture="ArceeForCausalLM",
    absent={"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_attention_heads": 8},
    follows=frozenset({"attention_bias", "mlp_bias"}),
    layers=lambda config, count: (read_layer(config, mixer=read_attention(config), is_gated=False),) * count,
)
CONFIG = '{"model_type": "arcee", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 9}'
sys.path.append(str(folder := Path(tempfile.mkdtemp())))
(folder / "own-1.dist-info").mkdir()  # in a package: [project.entry-points."penstock.families"] in pyproject.toml
(folder / "own-1.dist-info" / "entry_points.txt").write_text("[penstock.families]\narcee = __main__:FAMILY")
(folder / "config.json").write_text(CONFIG)
specs = model_specs(read_config(folder))
save_file({spec.name: torch.randn(spec.shape) / 8 for spec in specs}, folder / "model.safetensors")


async def main() -> None:
    async with Model.open(folder) as model:
        output = await model.generate([1, 2, 3], max_new_tokens=16)
    print(f"-- {len(output.token_ids)} tokens of a family of one's own")


asyncio.run(main())
