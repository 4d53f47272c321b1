#!/bin/bash
# transformers 5.24.0: a model that sees ignores "tie_word_embeddings" of its text_config, and the text model alone that of
# its surroundings: one checkpoint has a trained head with one class, and a random one with the other.
#
# Qwen3.5 tied its head to the embedding, and stores no lm_head.weight. Its config.json has the key twice: at the top level
# and in text_config. Where the two differ, Qwen3_5ForConditionalGeneration goes by the outer one (false where it is
# absent) and Qwen3_5ForCausalLM, which AutoModelForCausalLM makes of the same files, by the inner one. The class that is
# told false draws the head at random, anew at each load. The load report has a line "lm_head.weight MISSING"; no error.
#
# Seen, for (outer, inner), whether the logits are those of the model that was saved:
#   (True, True): both classes; (True, False): the one that sees; (None, True) and (False, True): the text model
# Way out: state it in both places; a reader refuses a head that is neither stored nor tied.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "transformers==5.24.0" "numpy==2.4.6"
cat > "$folder/tied.py" <<'PROGRAM'
import json, pathlib, sys
import torch, transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
folder = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
text = dict(
    vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8, layer_types=["full_attention"], tie_word_embeddings=True,
)
vision = dict(
    depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16, num_position_embeddings=16
)
config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True)
CLASSES = transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM
model, tokens = CLASSES[0].from_config(config).eval(), torch.tensor([[1, 5, 7]])
model.save_pretrained(folder)
saved, stated = model(input_ids=tokens).logits, json.loads((folder / "config.json").read_text())


def same(outer, inner):
    values = {**stated, "text_config": {**stated["text_config"], "tie_word_embeddings": inner}}
    values |= {"tie_word_embeddings": outer}
    if outer is None:
        del values["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(values))
    logits = [one.from_pretrained(folder).eval()(input_ids=tokens).logits for one in CLASSES]
    return [torch.equal(one, saved) for one in logits]


seen = {case: same(*case) for case in ((True, True), (True, False), (None, True), (False, True))}
print(f"transformers {transformers.__version__}: (outer, inner): [the model that sees, the text model]", seen)
sys.exit([*seen.values()] != [[True, True], [True, False], [False, True], [False, True]])
PROGRAM
"$folder/venv/bin/python" "$folder/tied.py" "$folder/model"
