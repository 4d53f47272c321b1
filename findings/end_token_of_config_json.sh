#!/bin/bash
# transformers 5.24.0: with a generation_config.json that names no end token, that of config.json does not count.
#
# Where a checkpoint has no generation_config.json, `generate` ends at the eos_token_id of config.json. As soon as the file
# is there, with whatever else in it, an absent or null eos_token_id means that nothing ends an answer: it runs to
# max_new_tokens. No warning. (model.config.eos_token_id still says the end token.)
#
# Seen, for a model whose third token is the end token of config.json:
#   without the file: 3 tokens; with {"do_sample": false}: 12 of 12; with {"eos_token_id": null}: 12 of 12
# Way out: write eos_token_id into generation_config.json; or read config.json where the other file names none.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.24.0" "numpy==2.4.6"
cat > "$folder/ends.py" <<'PROGRAM'
import json, logging, pathlib, sys
import torch, transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
folder = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=None,
)
transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def tokens(end, generation):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "eos_token_id": end}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    out = model.generate(torch.tensor([[1, 5]]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    return out[0, 2:].tolist()


free = tokens(None, None)
at = next(at for at in range(2, 12) if free[at] not in free[:at])
end = free[at]
counts = [len(tokens(end, one)) for one in (None, {"do_sample": False}, {"eos_token_id": None})]
print(f"transformers {transformers.__version__}: end token {end} of config.json, {at + 1} tokens up to it")
print("without the file: {}; with do_sample only: {} of 12; with eos_token_id null: {} of 12".format(*counts))
sys.exit(counts != [at + 1, 12, 12])
PROGRAM
"$folder/venv/bin/python" "$folder/ends.py" "$folder/model"
