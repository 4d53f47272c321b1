#!/bin/bash
# torch 2.13.0, CPU: silu, sigmoid and gelu of one fp32 value have two results, by where it stands in the tensor.
#
# They are elementwise, so one would guess that the result depends on the value alone. But an fp32 tensor is worked on
# in vectors, and what is left at its end, less than a vector, by other code; the two round some values differently, in
# the last bit. So a row's result changes with the rows beside it: the last numbers of a row whose length is no multiple
# of the vector's are in a vector when another row follows, and in the rest when it is the last.
#
# Seen on an x86 CPU with AVX-512: of 2,000 random values, each filling a tensor of 37, some come out as two:
#   silu 84    sigmoid 77    gelu(tanh) 317    exp 0    tanh 0;    in bfloat16 and float16: none
# Way out where rows must not depend on each other: pad rows to whole vectors (16 fp32 values), or compute in bf16.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/places.py" <<'PROGRAM'
import torch
from torch.nn.functional import gelu, silu

torch.set_num_threads(1)
values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).tolist()


def split(function, dtype):
    return sum(len(function(torch.full((37,), value, dtype=dtype)).unique()) > 1 for value in values)


functions = {
    "silu": silu, "sigmoid": torch.sigmoid, "gelu(tanh)": lambda x: gelu(x, approximate="tanh"), "exp": torch.exp,
}
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
for name, function in functions.items():
    counts = {str(dtype): split(function, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    print(name, counts)
    assert (counts["torch.float32"] > 0) == (name != "exp"), "another behaviour in fp32"
    assert not counts["torch.bfloat16"] and not counts["torch.float16"], "another behaviour in 16 bits"
PROGRAM
"$folder/venv/bin/python" "$folder/places.py"
