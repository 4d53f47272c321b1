#!/bin/bash
# tokenizers 0.23.3: Tokenizer.encode holds the interpreter lock; encode_batch_fast([text]) does not, and is faster.
#
# A thread that calls encode(text) stops every other thread for the whole time, an event loop among them: seconds for a
# text of some megabytes. The same text as a batch of one is encoded without the lock, to the same ids.
#
# Seen, one MB of text, the longest time in which another thread could not run (on two cores):
#   encode 1.5 s, held 1.5 s        encode_batch_fast of one text 0.3 s, held 0.02 to 0.07 s
# Way out: encode_batch_fast([text])[0].ids, on a thread.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "tokenizers==0.23.3"
cat > "$folder/held.py" <<'PROGRAM'
import sys, threading, time
from tokenizers import Tokenizer, models, pre_tokenizers

vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
text = "hello world " * 100_000

def longest_pause(work):
    pauses, done = [0.0], threading.Event()

    def tick():
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            pauses.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticking = threading.Thread(target=tick)
    ticking.start()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    done.set()
    ticking.join()
    return max(pauses), seconds, result

held, took, alone = longest_pause(lambda: tokenizer.encode(text))
held_batch, took_batch, batch = longest_pause(lambda: tokenizer.encode_batch_fast([text])[0])
print(f"encode: {took:.2f} s, others stopped for {held:.2f} s")
print(f"encode_batch_fast of one text: {took_batch:.2f} s, others stopped for {held_batch:.2f} s")
sys.exit(not (alone.ids == batch.ids and held > 0.8 * took and held_batch < 0.5 * held))
PROGRAM
"$folder/venv/bin/python" "$folder/held.py"
