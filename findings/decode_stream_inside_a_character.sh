#!/bin/bash
# tokenizers 0.23.3: a DecodeStream begun with a prompt that ends inside a character repeats the prompt's text.
#
# DecodeStream(ids=prompt) is for following an answer: step() returns the text that each new token adds to the prompt's.
# A prompt given as token ids can end inside a UTF-8 character (byte fallback, or a byte-level vocabulary). Then the
# first step that completes the character returns the text of the whole prompt again, not the character alone.
#
# Seen, with "Hello" and the first two bytes of U+4E16 as prompt, and its third byte, then "!" as answer:
#   steps: 'Hello世', '!'        after a prompt that ends with a character, "Hello": '世' (at its third byte), '!'
# Way out: begin the stream at the last token whose text was complete, or decode bytes incrementally.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "tokenizers==0.23.3"
cat > "$folder/stream.py" <<'PROGRAM'
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
hello, character, end = (tokenizer.encode(text).ids for text in ("Hello", "世", "!"))

def steps(prompt, answer):
    stream = DecodeStream(ids=prompt, skip_special_tokens=True)
    return [stream.step(tokenizer, token_id) for token_id in answer]

inside, outside = steps(hello + character[:2], character[2:] + end), steps(hello, character + end)
print("prompt ends inside the character:", inside)
print("prompt ends before it:", outside)
sys.exit(not (inside == ["Hello世", "!"] and outside == [None, None, "世", "!"]))
PROGRAM
"$folder/venv/bin/python" "$folder/stream.py"
