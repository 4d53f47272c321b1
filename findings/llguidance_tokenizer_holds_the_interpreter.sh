#!/bin/bash
# llguidance 1.9.1: making an LLTokenizer holds the interpreter lock from beginning to end.
#
# Its docs say of LLMatcher that it drops the lock while a grammar is compiled, which takes milliseconds. The tokenizer
# that it needs first takes a hundred times as long, for a vocabulary of 128,000 tokens 0.1 to 0.3 s, and drops nothing: on
# a thread of its own, an event loop beside it stands still all the same. With `slices=[]` it takes half of that, and the
# masks of new states of a grammar twice as long.
#
# Seen: made in 0.24 s; another thread stood still for 0.24 s of it
# Way out: make it once for a model, when the first grammar is asked for, or before requests come.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "llguidance==1.9.1"
cat > "$folder/lock.py" <<'PROGRAM'
import random, string, sys, threading, time
from llguidance import LLTokenizer, TokenizerWrapper

draw = random.Random(1)
words = {bytes([value]) for value in range(256)}
while len(words) < 128_000:
    words.add("".join(draw.choices(string.printable, k=draw.randrange(2, 9))).encode())


class Words:
    eos_token_id, bos_token_id, special_token_ids = 128_000, None, [128_000]
    tokens = [*sorted(words), b"<end>"]

    def __call__(self, text):
        return []


longest = 0.0


def tick():
    global longest
    last = time.perf_counter()
    while True:
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now


wrapper = TokenizerWrapper(Words())
threading.Thread(target=tick, daemon=True).start()
time.sleep(0.1)
longest, began = 0.0, time.perf_counter()
LLTokenizer(wrapper)
took = time.perf_counter() - began
time.sleep(0.02)
print(f"made in {took:.2f} s; another thread stood still for {longest:.2f} s of it")
sys.exit(not (took > 0.02 and longest > 0.8 * took))
PROGRAM
"$folder/venv/bin/python" "$folder/lock.py"
