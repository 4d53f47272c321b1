#!/bin/bash
# triton 3.6.0 with NumPy 2.4: under TRITON_INTERPRET=1 a loop whose bound is a number that the kernel has computed or
# loaded ends in a TypeError; compiled, and interpreted with NumPy 2.3, it runs.
#
# `range(count)` with a tensor of Triton calls its __index__, for which the interpreter makes a Python int of a NumPy
# array with one axis of length 1. NumPy had deprecated that since 1.25, and 2.4 refuses it. Loops to such bounds are
# what kernels for ragged rows are made of (as many steps as a request has blocks); a bound that is an argument of the
# kernel is one, too. Triton asks for no version of NumPy.
#
# Seen: NumPy 2.4.6 "TypeError: only 0-dimensional arrays can be converted to Python scalars"; NumPy 2.3.5 the sum.
# Way out: NumPy below 2.4 where kernels are interpreted.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install -q --no-deps "triton==3.6.0"
cat > "$folder/loop.py" <<'PROGRAM'
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def loaded(count, out):
    sum = 0
    for step in range(tl.load(count)):
        sum += step
    tl.store(out, sum)


@triton.jit
def given(count, out):
    sum = 0
    for step in range(count):
        sum += step
    tl.store(out, sum)


refused = []
for kernel, count in ((loaded, torch.tensor([5], dtype=torch.int32)), (given, 5)):
    out = torch.zeros(1, dtype=torch.int32)
    try:
        kernel[(1,)](count, out)
        refused.append(False)
        print("NumPy", numpy.__version__, kernel.fn.__name__, out.tolist())
    except Exception as error:
        refused.append(True)
        print("NumPy", numpy.__version__, kernel.fn.__name__, repr(error.__cause__))
sys.exit(refused != [sys.argv[1] == "refused"] * 2)
PROGRAM
"$folder/venv/bin/python" "$folder/loop.py" refused
"$folder/venv/bin/pip" install -q "numpy==2.3.5"
"$folder/venv/bin/python" "$folder/loop.py" runs
