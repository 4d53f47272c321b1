#!/bin/bash
# tokenizers 0.23.3: the ids of added tokens in a tokenizer.json are ignored where they leave ids out.
#
# Each entry of "added_tokens" says its "id". Tokenizer.from_file gives a new token the next id after the vocabulary,
# whatever the entry says, and a token of the vocabulary the vocabulary's id: no error, no warning in Python. A token
# declared as 310 behind a vocabulary of 256 gets 256, and the model computes with another row of its embedding. What
# transformers reads from added_tokens_decoder in tokenizer_config.json is renumbered in the same way.
#
# Seen, for a vocabulary of 256 tokens and entries {"id": 256, "<a>"}, {"id": 310, "<b>"}, {"id": 3, "$"}:
#   declared {'<a>': 256, '<b>': 310, '$': 3}    given {'<a>': 256, '<b>': 257, '$': <its id in the vocabulary>}
# Way out: compare token_to_id(content) with the file's ids after reading it.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "tokenizers==0.23.3"
cat > "$folder/ids.py" <<'PROGRAM'
import json, sys
from tokenizers import Tokenizer, models, pre_tokenizers

vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
document = json.loads(Tokenizer(models.BPE(vocab=vocabulary, merges=[])).to_str())
declared = {"<a>": 256, "<b>": 310, "$": vocabulary["%"]}
flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
document["added_tokens"] = [{"id": i, "content": content, **flags} for content, i in declared.items()]
with open(sys.argv[1], "w") as file:
    json.dump(document, file)
given = {content: Tokenizer.from_file(sys.argv[1]).token_to_id(content) for content in declared}
print("declared", declared, "given", given)
sys.exit(given != {"<a>": 256, "<b>": 257, "$": vocabulary["$"]})
PROGRAM
"$folder/venv/bin/python" "$folder/ids.py" "$folder/tokenizer.json"
