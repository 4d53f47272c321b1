#!/bin/bash
# transformers 5.24.0: the prefix "model." of a tensor's name may be there never, once or twice, and of two such names one
# wins without a word.
#
# The names in the files of a LlamaForCausalLM begin with "model.", but for lm_head.weight. `from_pretrained` puts the
# prefix in front where that gives a name of the model, so that what LlamaModel saved is read. It also takes it away:
#   1. Files whose every name has it once too often (model.model.norm.weight, model.lm_head.weight) are loaded, and the
#      report names nothing as missing or unexpected.
#   2. With norm.weight, model.norm.weight and model.model.norm.weight of different values in one file, the first by
#      alphabet is loaded, in place of the one that has the name of the parameter. Nothing is said of the others.
#   3. It is taken away by a regular expression whose dot stands for any character: model_lm_head.weight is loaded too.
#
# Seen: "loaded" for 1, "model.model.norm.weight" for 2, "loaded" for 3.
# Way out for other readers: look for a tensor under all three names, and refuse a file that has two of them.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" "safetensors==0.8.0" "numpy==2.4.6"
cat > "$folder/prefix.py" <<'PROGRAM'
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
folder = Path(tempfile.mkdtemp())
AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")


def loaded(stored):
    """The model that comes of a file with these tensors, and whether the report names none of them."""
    save_file({name: value.clone() for name, value in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return model, not (report["missing_keys"] or report["unexpected_keys"])


def told(model, is_silent):
    same = all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    return "loaded" if same and is_silent else "not loaded"


seen = [told(*loaded({f"model.{name}": value for name, value in tensors.items()}))]
norms = {name: torch.full((16,), float(value)) for value, name in enumerate(["norm", "model.norm", "model.model.norm"])}
model, is_silent = loaded(tensors | {f"{name}.weight": value for name, value in norms.items()})
won = next(name for name, value in norms.items() if torch.equal(model.model.norm.weight, value))
seen += [f"{won}.weight" if is_silent else "something was said"]
others = {("model_" if name == "lm_head.weight" else "") + name: value for name, value in tensors.items()}
seen += [told(*loaded(others))]
print(seen)
sys.exit(seen != ["loaded", "model.model.norm.weight", "loaded"])
PROGRAM
"$folder/venv/bin/python" "$folder/prefix.py"
