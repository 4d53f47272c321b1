#!/bin/bash
# tokenizers 0.23.3: NFC and its siblings do not order combining marks that came with Unicode 10 and later.
#
# normalizers.NFC (in every Qwen tokenizer.json) uses tables of an old Unicode version: a mark that they do not know is
# a letter to them, so other marks are not ordered, nor joined with their letter, across it. unicodedata.normalize does
# both, by the tables of the Python at hand, so that code which normalizes with Python gives other token ids, and other
# ones with each version of Python.
#
# Seen, "e" + mark + U+0323 (dot below, class 220) and "e" + U+0301 + mark, for all marks of Python 3.11 (Unicode 14):
#   74 marks give another text, none of them older than Unicode 10: U+0898 ... U+1E2EF; no character alone does.
# Way out: normalize with the package itself, whatever does the rest.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "tokenizers==0.23.3"
cat > "$folder/marks.py" <<'PROGRAM'
import sys, unicodedata
from tokenizers import normalizers

package = normalizers.NFC().normalize_str
characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
marks = [character for character in characters if unicodedata.combining(character)]
texts = {mark: (f"e{mark}\u0323", f"e\u0301{mark}") for mark in marks}
other = [mark for mark, pair in texts.items() if any(package(text) != unicodedata.normalize("NFC", text) for text in pair)]
alone = [one for one in characters if package(one) != unicodedata.normalize("NFC", one)]
print(f"Python knows Unicode {unicodedata.unidata_version}: {len(other)} marks differ, {len(alone)} characters alone")
print(" ".join(f"U+{ord(mark):04X}" for mark in other))
# Marks of Unicode 14, which Python knows from 3.11 on.
newer = [f"e{mark}\u0323" for mark in "\u08ca\u1ac1\u0898"]
sys.exit(not (other and all(package(text) == text != unicodedata.normalize("NFC", text) for text in newer)))
PROGRAM
"$folder/venv/bin/python" "$folder/marks.py"
