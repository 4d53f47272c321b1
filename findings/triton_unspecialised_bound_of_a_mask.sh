#!/bin/bash
# triton 3.6.0: a kernel whose count of items is not specialised loads them one by one, though the pointers are aligned.
#
# `tl.load(x + i, mask=i < count)` of bf16 items at an aligned address looks as if a thread could load 16 bytes, and the
# tail be masked. It can only where the compiler knows that the mask has one value for these 8 items, which it takes
# from `count` being a multiple of 16. `do_not_specialize=["count"]`, which spares a compilation for counts that are
# none, takes that away: every item is a load of its own, for all counts, and a kernel that only streams memory took
# 2.7 times as long on an H200.
#
# Seen in the PTX for compute capability 9.0, which is compiled without a GPU:
#   as by default, count divisible by 16      ld.global.v4.b32
#   as do_not_specialize compiles it          ld.global.b16, eight times as many
# Way out: let counts be specialised, or pad and leave the mask out.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "triton==3.6.0"
cat > "$folder/loads.py" <<'PROGRAM'
import collections
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def double(x, count):
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(x + i, tl.load(x + i, mask=i < count) * 2, mask=i < count)


print("triton", triton.__version__)
for known in (True, False):
    divisible = [["tt.divisibility", 16]]
    source = ASTSource(
        double, {"x": "*bf16", "count": "i32"}, {}, attrs={(0,): divisible} | ({(1,): divisible} if known else {})
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    found = collections.Counter(re.findall(r"ld\.global\.\S+", ptx))
    print("count known to be a multiple of 16:", known, dict(found))
    assert any(".v4." in name for name in found) == known, "another behaviour"
    assert (sum(found.values()) == 1) == known, "another behaviour"
PROGRAM
"$folder/venv/bin/python" "$folder/loads.py"
