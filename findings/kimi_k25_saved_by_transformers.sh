#!/bin/bash
# transformers 5.24.0: a kimi_k25 model that it saves names the text model's layers "blocks", as no published file does.
#
# Published Kimi K2.5 files have language_model.model.layers.N... and vision_tower.encoder.blocks.N... On loading
# transformers renames "blocks" of the tower to "layers". On saving it reverses that in every name, also of the text model:
# language_model.model.blocks.N... It loads such files itself. Any other reader looks for the names that are published,
# finds no layer, and a fine-tuned model that was saved does not have the names of the one that was loaded.
#
# Seen: {"text layers": 0, "text blocks": 24, "loads itself": true}
# Way out: rename language_model.model.blocks to language_model.model.layers in what was saved.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0"
cat > "$folder/saved.py" <<'PROGRAM'
import json
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, Kimi_K25Config

folder = sys.argv[1]
text = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
}
vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
config = Kimi_K25Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
model = AutoModelForImageTextToText.from_config(config)
model.save_pretrained(folder)
with safe_open(f"{folder}/model.safetensors", "pt") as file:
    names = [name for name in file.keys() if name.startswith("language_model.")]
again = dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())
seen = {
    "text layers": sum(".layers." in name for name in names),
    "text blocks": sum(".blocks." in name for name in names),
    "loads itself": all(torch.equal(one, again[name]) for name, one in model.named_parameters()),
}
print(json.dumps(seen))
sys.exit([*seen.values()] != [0, 24, True])
PROGRAM
"$folder/venv/bin/python" "$folder/saved.py" "$folder/model"
