#!/bin/bash
# compressed-tensors 0.20.1: MXFP4 weights are decoded to bfloat16, whatever the dtype of the model and of its other weights.
#
# Its scales are made bfloat16 when they are decoded, and the weights get the dtype of their scales. Integers and FP8 keep
# the dtype in which scales are stored. So a stock mxfp4-pack-quantized folder, loaded by transformers 5.24.0 with
# dtype=torch.float32, computes its first product of float32 states and bfloat16 weights, which torch refuses with a
# RuntimeError that names both dtypes. dtype=torch.float16 fails alike, bfloat16 works.
#
# Seen: {"pack-quantized": "torch.float32", "float-quantized": "torch.float32", "mxfp4-pack-quantized": "torch.bfloat16"}
# Way out: load in bfloat16, or with CompressedTensorsConfig(..., dequantize=True), whose weights are cast when copied.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "compressed-tensors==0.20.1" "transformers==5.24.0" "torch==2.13.0"
cat > "$folder/dtypes.py" <<'PROGRAM'
import json
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

SCHEMES = {
    "pack-quantized": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "mxfp4-pack-quantized": {
        **{"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    },
}
seen = {}
for name, weights in SCHEMES.items():
    scheme = QuantizationScheme(targets=["Linear"], weights={**weights, "symmetric": True})
    compressor = BaseCompressor.get_value_from_registry(name)
    scale = torch.full((16, 1 if weights["strategy"] == "channel" else 2), 0.25)
    stored = compressor.compress({"weight": torch.ones(16, 64), "weight_scale": scale}, scheme)
    seen[name] = str(compressor.decompress(stored, scheme)["weight"].dtype)
print(json.dumps(seen))
sys.exit([*seen.values()] != ["torch.float32", "torch.float32", "torch.bfloat16"])
PROGRAM
"$folder/venv/bin/python" "$folder/dtypes.py"
