#!/bin/bash
# torch 2.13.0: a tensor that is contiguous, and that contiguous() gives back, may have no view in a smaller dtype.
#
# Where an axis has length 1, its stride counts for nothing: a transposed [1, N] is contiguous with strides (1, N), and
# contiguous() returns it as it is. But view(torch.uint8) asks for a last stride of 1 and raises. compressed-tensors
# 0.20.1 stumbles over that: it unpacks zero points of 4 bits so, and cannot decompress a pack-quantized matrix with
# zero points that has at most 8 rows, which it has compressed itself; one of 9 rows is in order.
#
# Seen:
#   contiguous: True; strides of contiguous(): (1, 4); view as bytes: refused; of a clone: (4, 4)
#   decompressed: 8 rows: refused; 9 rows: (9, 32)
# Way out: clone(memory_format=torch.contiguous_format), which makes the strides anew.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6" "transformers==5.24.0" "compressed-tensors==0.20.1"
cat > "$folder/bytes.py" <<'PROGRAM'
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme


def tried(call):
    try:
        return tuple(call().shape)
    except RuntimeError as error:
        assert "stride(-1) must be 1" in str(error), error
        return "refused"


words = torch.zeros(1, 4, dtype=torch.int32).T
same = words.contiguous()
seen = [words.is_contiguous(), same.stride(), tried(lambda: same.view(torch.uint8))]
copied = tried(lambda: words.clone(memory_format=torch.contiguous_format).view(torch.uint8))
print(f"contiguous: {seen[0]}; strides of contiguous(): {seen[1]}; view as bytes: {seen[2]}; of a clone: {copied}")
weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=8)
scheme = QuantizationScheme(targets=["Linear"], weights=weights)
compressor = BaseCompressor.get_value_from_registry("pack-quantized")
found = {}
for rows in (8, 9):
    parts = {
        "weight": torch.randn(rows, 32),
        "weight_scale": torch.full((rows, 4), 0.25),
        "weight_zero_point": torch.zeros(rows, 4, dtype=torch.int8),
    }
    parts = compressor.compress(parts, scheme)
    found[rows] = tried(lambda: compressor.decompress(parts, scheme)["weight"])
print("decompressed:", "; ".join(f"{rows} rows: {shape}" for rows, shape in found.items()))
sys.exit([*seen, copied, found] != [True, (1, 4), "refused", (4, 4), {8: "refused", 9: (9, 32)}])
PROGRAM
"$folder/venv/bin/python" "$folder/bytes.py"
