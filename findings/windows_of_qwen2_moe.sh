#!/bin/bash
# transformers 5.24.0: max_window_layers means the opposite in qwen2_moe of what it means in qwen2.
#
# With use_sliding_window the layers of qwen2 have a window from max_window_layers on, and all of them. Those of qwen2_moe
# have it before max_window_layers, and every other one of these. The keys and their defaults are the same, and
# config.json says nothing of it where it has no layer_types.
#
# Seen, for 6 layers with max_window_layers 4 (S a window, f none):
#   qwen2: ffffSS
#   qwen2_moe: SfSfff
# Way out: read max_window_layers by the model_type, or state layer_types.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0"
"$folder/venv/bin/python" - <<'PROGRAM'
import sys
import transformers

seen = {}
for kind in (transformers.Qwen2Config, transformers.Qwen2MoeConfig):
    config = kind(num_hidden_layers=6, use_sliding_window=True, sliding_window=9, max_window_layers=4)
    seen[config.model_type] = "".join("S" if one == "sliding_attention" else "f" for one in config.layer_types)
    print(f"{config.model_type}: {seen[config.model_type]}")
sys.exit(seen != {"qwen2": "ffffSS", "qwen2_moe": "SfSfff"})
PROGRAM
