#!/bin/bash
# llguidance 1.9.1: what the tokenizer callable returns for a text must spell this text, byte for byte; nothing checks it.
#
# Where a grammar forces a text, llguidance asks the callable for its tokens, and the mask of the next token is the first
# of these alone. A tokenizer like that of Llama 2 or Mistral 7B begins every text with a space (Metaspace, "prepend_scheme":
# "always"): the mask then allows one token, with a space in front, and the grammar refuses this very token. One that
# composes letters (NFC), and names of special tokens inside of a JSON schema, end alike. Nothing in `TokenizerWrapper`,
# which takes any callable, says so.
#
# Seen: for the regular expression "ab" the mask allows [' a']; consumed: False, "doesn't satisfy the grammar"
# Way out: ids of the text behind a character that joins nothing ("\x02"), less those of this character.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "llguidance==1.9.1" "tokenizers==0.22.2"
cat > "$folder/spelled.py" <<'PROGRAM'
import sys

import llguidance
from tokenizers import Tokenizer, models, pre_tokenizers

vocabulary = {"▁": 0, "a": 1, "b": 2, "▁a": 3, "</s>": 4, "\x02": 5}
made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")]))
made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)


class Words:
    eos_token_id, bos_token_id, special_token_ids = 4, None, [4]
    tokens = [b" ", b"a", b"b", b" a", b"</s>", b"\x02"]

    def __call__(self, text):
        return made.encode(text if isinstance(text, str) else text.decode()).ids


class InsideOfTexts(Words):
    def __call__(self, text):
        before = super().__call__("\x02")
        return super().__call__("\x02" + (text if isinstance(text, str) else text.decode()))[len(before) :]


def first(words):
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words))
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_regex("ab"), log_level=0)
    mask = matcher.compute_bitmask()
    allowed = [token_id for token_id in vocabulary.values() if mask[token_id // 8] >> token_id % 8 & 1]
    consumed = matcher.consume_token(allowed[0])
    texts = [words.tokens[one].decode() for one in allowed]
    print(f"{type(words).__name__}: the mask allows {texts}; consumed: {consumed}; {matcher.get_error()[:80]}")
    return texts, consumed


seen = first(Words()), first(InsideOfTexts())
sys.exit(seen != (([" a"], False), (["a"], True)))
PROGRAM
"$folder/venv/bin/python" "$folder/spelled.py"
