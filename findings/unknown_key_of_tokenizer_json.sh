#!/bin/bash
# tokenizers 0.23.3: a key at the top of a tokenizer.json that the package does not know is a syntax error to it.
#
# Inside "model" and inside an added token an unknown key is ignored. At the top, where a tool or a later version may put
# one, the file is refused, and the message blames the JSON, which is in order: it names the last column of the file.
#
# Seen: in the model: read; in an added token: read; at the top: Exception: expected `,` or `}` at line 1 column <last>
# Way out: drop what is not among version, truncation, padding, added_tokens, normalizer, pre_tokenizer, post_processor,
# decoder and model before the package sees the text.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "tokenizers==0.23.3"
cat > "$folder/keys.py" <<'PROGRAM'
import json, sys
from tokenizers import Tokenizer, models

tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
tokenizer.add_special_tokens(["<s>"])


def read(where, change):
    document = json.loads(tokenizer.to_str())
    change(document)
    try:
        Tokenizer.from_str(json.dumps(document))
        said = "read"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(f"{where}: {said}")
    return said


model = read("in the model", lambda one: one["model"].update(note="x"))
token = read("in an added token", lambda one: one["added_tokens"][0].update(note="x"))
top = read("at the top", lambda one: one.update(note="x"))
sys.exit(not ((model, token) == ("read", "read") and "expected `,` or `}`" in top))
PROGRAM
"$folder/venv/bin/python" "$folder/keys.py"
