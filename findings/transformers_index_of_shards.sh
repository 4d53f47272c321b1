#!/bin/bash
# transformers 5.24.0: of the index of shards only the file names count; a stored lm_head beats tie_word_embeddings.
#
# The index maps each tensor to the shard that holds it, so a reader may take from a shard what the map names and nothing
# else. `from_pretrained` takes the set of file names out of it and then every tensor of every such file:
#   1. A tensor that a shard holds and the map does not name is loaded all the same.
#   2. Of a tensor that two shards hold, the one in the file whose name sorts last is loaded, also when the map names the
#      other. Nothing is said.
# And of the two sources of truth about the output matrix, the flag in config.json is the weaker:
#   3. With tie_word_embeddings true and an lm_head.weight of other values in the file, the stored one is computed with.
#   4. With tie_word_embeddings true and only lm_head.weight in the file, the embedding is tied to that.
#
# Seen: "loaded" for 1, "second shard" for 2, "stored head" for 3, "embedding is the head" for 4.
# Way out for other readers: read all tensors of all shards, refuse a name that comes twice, prefer what is stored.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" "safetensors==0.8.0" "numpy==2.4.6"
cat > "$folder/shards.py" <<'PROGRAM'
import json
import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print("transformers", transformers.__version__)
torch.manual_seed(0)
shape = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
whole = Path(tempfile.mkdtemp())
AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(whole)
tensors = load_file(whole / "model.safetensors")
head, embedding = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]


def loaded(shards, index, **changes):
    """The model that comes of these shards, and of an index that names what it is told to."""
    folder = Path(tempfile.mkdtemp())
    config = json.loads((whole / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    for name, held in shards.items():
        save_file({key: value.clone() for key, value in held.items()}, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return AutoModelForCausalLM.from_pretrained(folder)


def without(*names):
    return {key: value for key, value in tensors.items() if key not in names}


ones = {"lm_head.weight": torch.ones_like(head), "model.norm.weight": tensors["model.norm.weight"]}
index = dict.fromkeys(without("lm_head.weight"), "a.safetensors")
model = loaded({"a.safetensors": tensors}, index)
seen = ["loaded" if torch.equal(model.lm_head.weight, head) else "not loaded"]
index = dict.fromkeys(without("model.norm.weight"), "a.safetensors") | {"model.norm.weight": "b.safetensors"}
model = loaded({"a.safetensors": without("model.norm.weight"), "b.safetensors": ones}, index)
seen += ["second shard" if torch.equal(model.lm_head.weight, ones["lm_head.weight"]) else "the one that is named"]
index = dict.fromkeys(tensors, "a.safetensors")
model = loaded({"a.safetensors": tensors}, index, tie_word_embeddings=True)
seen += ["stored head" if torch.equal(model.lm_head.weight, head) else "tied"]
index.pop("model.embed_tokens.weight")
model = loaded({"a.safetensors": without("model.embed_tokens.weight")}, index, tie_word_embeddings=True)
seen += ["embedding is the head" if torch.equal(model.model.embed_tokens.weight, head) else "something else"]
print(seen)
sys.exit(seen != ["loaded", "second shard", "stored head", "embedding is the head"])
PROGRAM
TMPDIR="$folder" "$folder/venv/bin/python" "$folder/shards.py"
