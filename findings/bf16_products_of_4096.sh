#!/bin/bash
# torch 2.13.0, CPU with AVX-512, bf16: a row of `linear` has other bits among two rows than among three, where the
# matrix has 2,048 numbers or less.
#
# torch gives a product in bf16 to oneDNN if rows x F x D is above 16 * 16 * 16 (ATen/native/mkldnn/Matmul.cpp), and to a
# kernel of its own else, which adds up in another order. That oneDNN itself gives a row the same bits among 2 rows and
# among any number is what batching relies on; the limit is far below usual matrices. But a gate of a shared expert is
# [1, 2048], a router of few experts or the end of a vocabulary that is cut into slices has as little: what one request
# gets there depends on how many others are in its batch.
#
# Seen, outputs of 12,000 rows with another bit in pairs than all at once: [1, 2048] 2, [8, 256] 6, [24, 64] 9, [64, 32] 17;
# [64, 64] and [24, 256] none, nor [64, 32] in fp16.
# Way out: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "") is oneDNN for any size.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/pairs.py" <<'PROGRAM'
import sys
import torch
from torch.nn.functional import linear

if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    sys.exit("needs a CPU on which oneDNN multiplies in bf16")


def one_dnn(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def differ(shape, dtype, product):
    torch.manual_seed(0)
    weight, x = torch.randn(shape).to(dtype), torch.randn(12_000, shape[1]).to(dtype)
    pairs = torch.cat([product(x[at : at + 2], weight) for at in range(0, len(x), 2)])
    return int((product(x, weight) != pairs).sum())


small = {shape: differ(shape, torch.bfloat16, linear) for shape in ((1, 2048), (8, 256), (24, 64), (64, 32))}
none = {
    "[64, 64]": differ((64, 64), torch.bfloat16, linear),
    "[24, 256]": differ((24, 256), torch.bfloat16, linear),
    "[64, 32] by oneDNN": differ((64, 32), torch.bfloat16, one_dnn),
    "[1, 2048] by oneDNN": differ((1, 2048), torch.bfloat16, one_dnn),
    "[64, 32] in fp16": differ((64, 32), torch.float16, linear),
}
print("outputs that differ:", small, none)
sys.exit(not all(small.values()) or any(none.values()))
PROGRAM
"$folder/venv/bin/python" "$folder/pairs.py"
