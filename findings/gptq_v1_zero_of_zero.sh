#!/bin/bash
# gptqmodel 7.7.0: its converter of files decodes GPTQ of version 1 wrongly where a zero point is 0.
#
# Version 1 ("checkpoint_format": "gptq") stores words of packed zero points less a word of ones: 0x11111111 for 4 bits.
# A zero of 0 borrows from the next one in its word. The module that computes adds the word of ones again, and is right.
# convert_gptq_file (behind dequantize_model) adds 1 to each number apart: 0 comes back, but the one after it stays 1
# too low, and so on through the word.
#
# Seen, for a layer of 32 outputs and 64 inputs in 4 bits, a third of its zeros 0, packed by gptqmodel itself:
#   differ from the weights that were packed: 0 in the module, 720 of 2048 in what the converter writes
# Way out: to read version 1, add the word of ones to the words.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q "torch==2.13.0" "transformers==5.24.0" "accelerate==1.15.0" "safetensors==0.8.0" "numpy==2.4.6" \
    "setuptools" "wheel" "packaging" "pypcre==0.6.4" "logbar==0.4.15" "device-smi==0.5.7" "threadpoolctl" "pillow" "dill" \
    "protobuf" "requests" "jinja2"
"$pip" install -q --no-deps "tokenicer==0.0.14" "defuser==0.0.28"
"$pip" download -q --no-deps --no-build-isolation --no-binary gptqmodel -d "$folder" "gptqmodel==7.7.0"
tar xzf "$folder/gptqmodel-7.7.0.tar.gz" -C "$folder"
cat > "$folder/zeros.py" <<'PROGRAM'
import sys
from pathlib import Path

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module
from gptqmodel.utils.model_dequant import convert_gptq_file
from safetensors.torch import save_file

torch.manual_seed(1)
inputs, outputs, group = 64, 32, 16
zeros = torch.randint(0, 16, (outputs, inputs // group))
zeros[::3] = 0
numbers = torch.randint(0, 16, (outputs, inputs))
linear = torch.nn.Linear(inputs, outputs, bias=False).half()
linear.weight.data = ((numbers - zeros.repeat_interleave(group, dim=1)) * 0.5).half()
layer = TorchLinear(bits=4, group_size=group, sym=False, desc_act=False, in_features=inputs, out_features=outputs,
                    bias=False, format=FORMAT.GPTQ_V2)
order = torch.arange(inputs, dtype=torch.int32) // group
layer.pack(linear, torch.full(zeros.shape, 0.5).half(), zeros.float(), order)
convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=4, group_size=group))
file = Path(sys.argv[1])
save_file({f"layer.{name}": getattr(layer, name).contiguous() for name in ("qweight", "qzeros", "scales", "g_idx")}, file)
config = {"bits": 4, "checkpoint_format": "gptq"}
converted = convert_gptq_file(file, torch.float16, config, device="cpu")["layer.weight"]
convert_gptq_v1_to_v2_format_module(layer, 4, torch.int32)
computed = layer.eval().dequantize_weight().T
wrong = [int((found != linear.weight).sum()) for found in (computed, converted)]
print(f"differ from the weights that were packed: {wrong[0]} in the module, {wrong[1]} of {numbers.numel()} in what the "
      "converter writes")
sys.exit(wrong != [0, 720])
PROGRAM
GPTQ_TORCH_TRITON_DEQUANT=0 PYTHONPATH="$folder/gptqmodel-7.7.0" "$folder/venv/bin/python" "$folder/zeros.py" \
    "$folder/model.safetensors"
