#!/bin/bash
# transformers 5.24.0: FP8 weights are dequantised with blocks of another size than weight_block_size says.
#
# In a checkpoint with quant_method "fp8" and weight_block_size [128, 128], a weight [F, D] has scales
# [ceil(F / 128), ceil(D / 128)], and the last blocks of an axis may be partial. Loaded with dequantize=True, the block is
# taken from the sizes instead: F / rows of scales. A weight [192, 256] with scales [2, 2] is decoded in blocks of 96
# rows: rows 96 to 127 get the scale of the second block, and there is no warning. Where that does not divide ([320, 256]
# with [3, 2] scales) loading fails. Its quantised layers use weight_block_size.
#
# Seen: {"rows whose scale is that of blocks of 96": 192, "of blocks of 128": 160}
# Way out: expand scales by weight_block_size on both axes and cut them to the size of the weight.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" accelerate
cat > "$folder/blocks.py" <<'PROGRAM'
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM

folder, name = sys.argv[1], "model.layers.0.mlp.gate_proj.weight"
config = LlamaConfig(
    vocab_size=64, hidden_size=256, intermediate_size=192, num_hidden_layers=1, num_attention_heads=2
)
LlamaForCausalLM(config).save_pretrained(folder)
tensors = load_file(f"{folder}/model.safetensors")
for key in [key for key in tensors if "_proj.weight" in key]:
    rows, columns = tensors[key].shape
    tensors[key] = torch.ones(rows, columns).to(torch.float8_e4m3fn)
    grid = -(-rows // 128), -(-columns // 128)
    tensors[f"{key}_scale_inv"] = torch.arange(1.0, 1 + grid[0])[:, None].expand(grid).contiguous()
save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
said = json.load(open(f"{folder}/config.json"))
said["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
json.dump(said, open(f"{folder}/config.json", "w"))
model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True)
)
scales = model.get_parameter(name).detach()[:, 0]  # every weight is 1
rows = torch.arange(192)
seen = {
    "rows whose scale is that of blocks of 96": int((scales == 1 + rows // 96).sum()),
    "of blocks of 128": int((scales == 1 + rows // 128).sum()),
}
print(json.dumps(seen))
sys.exit([*seen.values()] != [192, 160])
PROGRAM
"$folder/venv/bin/python" "$folder/blocks.py" "$folder/model"
