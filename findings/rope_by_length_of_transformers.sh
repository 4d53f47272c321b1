#!/bin/bash
# transformers 5.24.0: with RoPE scaling "dynamic" or "longrope" the text depends on the KV cache, and on earlier calls.
#
# The frequencies of both follow from the length of the sequence, which grows while a model answers. Each forward pass
# takes those of its length for the tokens that it computes; keys in the cache keep the turns that they were given.
#   1. dynamic, beyond the original context: greedy tokens with the cache, which is the default, are others than without.
#   2. longrope, when a sequence grows beyond the original context: the same. (Phi-3 alone drops its cache there.)
#   3. dynamic remembers the longest sequence that it has seen: one that is shorter, but longer than the original
#      context, gets other logits after it than in a fresh model. A sequence within the original context resets it.
# So "the same as transformers" means nothing for these two kinds before one says: without a cache, in a fresh model.
#
# Seen: "others" for 1 and 2, "remembered" and "reset" for 3.
# Way out: compute a sequence anew when its frequencies change, and choose them for each sequence by itself.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" "safetensors==0.8.0" "numpy==2.4.6"
cat > "$folder/lengths.py" <<'PROGRAM'
import sys
import warnings

warnings.simplefilter("ignore")
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__)
SHORT, LONG = [1 + index / 10 for index in range(6)], [1 + 1.5 * index for index in range(6)]
ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    },
}


def fresh(kind):
    torch.manual_seed(0)
    shape = dict(vocab_size=259, hidden_size=48, intermediate_size=104, num_hidden_layers=3, num_attention_heads=4)
    rope = {**ROPES[kind], "rope_theta": 1e4}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, max_position_embeddings=64, rope_parameters=rope))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.25)
    return model.eval()


def answer(kind, tokens, use_cache):
    prompt = torch.tensor([[(37 * index + 11) % 250 + 3 for index in range(tokens)]])
    arguments = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    return fresh(kind).generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, **arguments).tolist()


@torch.no_grad()
def last(model, tokens):
    return model(torch.tensor([[(37 * index + 11) % 250 + 3 for index in range(tokens)]]), use_cache=False).logits[0, -1]


seen = []
for kind, tokens in (("dynamic", 120), ("dynamic", 60), ("longrope", 60)):
    seen.append(answer(kind, tokens, True) != answer(kind, tokens, False))
    print(kind, f"{tokens} tokens and 12 more, with and without the cache:", "others" if seen[-1] else "the same")
inside = answer("longrope", 40, True) == answer("longrope", 40, False)
print("longrope, within the original context:", "the same" if inside else "others")

model = fresh("dynamic")
before = last(model, 80)
last(model, 200)
remembered = not torch.allclose(last(model, 80), before, atol=1e-3)
last(model, 10)
reset = torch.allclose(last(model, 80), before, atol=1e-3)
print("80 tokens after 200:", "remembered" if remembered else "forgotten", "and after 10:", "reset" if reset else "not")
sys.exit(not (all(seen) and inside and remembered and reset))
PROGRAM
"$folder/venv/bin/python" "$folder/lengths.py"
