#!/bin/bash
# triton 3.6.0: under TRITON_INTERPRET=1 a cast from fp32 to bf16 cuts bits off, where the compiled kernel rounds.
#
# The interpreter is there to check a kernel without a GPU. `x.to(tl.bfloat16)` rounds to the nearest even number when it
# is compiled (cvt.rn), and in torch; the interpreter drops the lower 16 bits, so that every result is off towards zero,
# by up to an ulp, and a kernel that is right differs from its reference. So it does where the cast asks for "rtne".
# Casts to fp16 go through NumPy, which rounds.
#
# Seen, for fp32 numbers between 1 and 1 + 2 ** -7, the neighbour of 1 in bf16:
#   1.0 + 0.75 * 2 ** -7    interpreted 1.0, torch 1.0078125      and in fp16 the same in both
# Way out: check such kernels in fp32 and fp16.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install -q --no-deps "triton==3.6.0"
cat > "$folder/cast.py" <<'PROGRAM'
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
import torch
import triton
import triton.language as tl


@triton.jit
def cast(x, out, ROUNDING: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty, fp_downcast_rounding=ROUNDING))


x = torch.tensor([1.0, 1.0 + 0.75 * 2**-7, 1.0 + 0.25 * 2**-7, 1.0 + 2**-7])
found = {}
for dtype in (torch.bfloat16, torch.float16):
    for rounding in (None, "rtne"):
        out = torch.zeros(4, dtype=dtype)
        cast[(1,)](x, out, ROUNDING=rounding, N=4)
        found[dtype, rounding] = torch.equal(out, x.to(dtype))
        print(dtype, rounding, out.tolist(), "torch", x.to(dtype).tolist())
of_bf16, of_fp16 = ([found[dtype, rounding] for rounding in (None, "rtne")] for dtype in (torch.bfloat16, torch.float16))
sys.exit(any(of_bf16) or not all(of_fp16))
PROGRAM
"$folder/venv/bin/python" "$folder/cast.py"
