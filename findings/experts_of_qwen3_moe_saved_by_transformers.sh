#!/bin/bash
# transformers 5.24.0: the config.json that it saves for qwen3_moe no longer has the key num_experts.
#
# The number of experts is saved as num_local_experts alone. transformers 4.57.6, which knows num_experts only, opens that
# file without a word and takes its default of 128; of a model with 6 experts it makes one with 128 a layer. Published
# files say num_experts, which both read. (qwen2_moe and qwen3_next are still saved with num_experts.)
#
# Seen, for 6 experts:
#   saved by 5.24.0: {'num_experts_per_tok': 8, 'num_local_experts': 6}; read by 4.57.6: num_experts 128
# Way out: read either key, and write both.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
for version in 5.24.0 4.57.6; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q "transformers==$version"
done
"$folder/5.24.0/bin/python" - "$folder/config" <<'PROGRAM'
import json, pathlib, sys
import transformers

folder = pathlib.Path(sys.argv[1])
transformers.Qwen3MoeConfig(num_experts=6).save_pretrained(folder)
saved = {key: one for key, one in json.loads((folder / "config.json").read_text()).items() if "experts" in key}
print(f"saved by {transformers.__version__}: {saved}")
sys.exit(saved != {"num_experts_per_tok": 8, "num_local_experts": 6})
PROGRAM
"$folder/4.57.6/bin/python" - "$folder/config" <<'PROGRAM'
import sys
import transformers

config = transformers.AutoConfig.from_pretrained(sys.argv[1])
print(f"read by {transformers.__version__}: num_experts {config.num_experts}")
sys.exit(config.num_experts != 128)
PROGRAM
