#!/bin/bash
# torch 2.13.0, CPU, fp32: the bits of scaled_dot_product_attention depend on the address at which the query lies.
#
# Same shape, same strides, same numbers, one thread: at an address that is no multiple of 16 bytes a query gets other
# bits than at one that is. Tensors of their own are aligned to 64 bytes, so nobody sees it; a row or a slice of a larger
# tensor is not, as soon as its rows have no multiple of 16 bytes: 3 heads of 22 channels in fp32 have 264. So what one
# request gets depends on which row of a batch it is in, also where every kernel is called with one row at a time.
#
# Seen: equal at offsets of 0, 16, 32 and 48 bytes, different at all other multiples of 4, for heads of 18, 22 and 64.
# Way out: copy a slice whose data_ptr() is no multiple of 64 before it is computed with.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/address.py" <<'PROGRAM'
import sys
import torch
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(1)
torch.manual_seed(0)
seen = []
for channels in (18, 22, 64):
    query, keys, values = torch.randn(1, 1, 3, channels), torch.randn(1, 1, 40, channels), torch.randn(1, 1, 40, channels)
    aligned = scaled_dot_product_attention(query, keys, values)
    room = torch.zeros(query.numel() + 16)
    for items in range(16):
        moved = room[items : items + query.numel()].view(query.shape).copy_(query)
        seen.append(torch.equal(scaled_dot_product_attention(moved, keys, values), aligned) == (items % 4 == 0))
        if channels == 22:
            print(f"{4 * items:2} bytes on: largest difference", (scaled_dot_product_attention(moved, keys, values) - aligned).abs().max().item())
print(torch.__version__)
sys.exit(not all(seen))
PROGRAM
"$folder/venv/bin/python" "$folder/address.py"
