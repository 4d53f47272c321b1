#!/bin/bash
# transformers 5.24.0: three values of a rope that config.json states for one type of layer are not those that turn it.
#
# Families such as OLMo 3 and Gemma 3 have an object in "rope_parameters" for each of their layer_types.
# 1. YaRN's "truncate": false of such an object is ignored: it is looked for beside the objects, and true is assumed. With
#    a ramp of few channels a frequency is off by a factor of 2. There is no warning.
# 2. In the spelling of transformers 4, OLMo 3 has one "rope_theta" for both types. The object for full attention takes
#    it; that for sliding attention gets the class's 500000, whatever the file says.
# 3. In the same spelling the kind of scaling may be called "type" in "rope_scaling", which every other family takes for
#    "rope_type". OLMo 3 and Gemma 3 put the object over one that says "rope_type": "default" already: nothing is scaled.
#
# Seen: {"truncate false, as true is": true, "truncate false, as it is without layer types": false}
#       {"sliding_attention": 500000.0, "full_attention": 1234.0}
#       {"rope_type": 0.25, "type": 1.0}: the fastest frequency of full attention, linear by a factor of 4
# Way out: read all from the object of the type, a base that is stated once for both, and the kind under both names.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0"
cat > "$folder/ropes.py" <<'PROGRAM'
import json
import sys

import torch
from transformers import Olmo3Config, Qwen2Config
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

SHAPE = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 128}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 16}
YARN = {**YARN, "beta_fast": 4.0, "beta_slow": 0.5}


def by_type(truncate):
    config = Olmo3Config(**SHAPE, rope_parameters={"full_attention": {**YARN, "truncate": truncate}})
    return Olmo3RotaryEmbedding(config).full_attention_inv_freq


alone = Qwen2RotaryEmbedding(Qwen2Config(**SHAPE, rope_parameters={**YARN, "truncate": False})).inv_freq
seen = {
    "truncate false, as true is": torch.equal(by_type(False), by_type(True)),
    "truncate false, as it is without layer types": torch.equal(by_type(False), alone),
}
print(json.dumps(seen))
ropes = Olmo3Config(**SHAPE, rope_theta=1234.0).rope_parameters
bases = {kind: ropes[kind]["rope_theta"] for kind in ("sliding_attention", "full_attention")}
print(json.dumps(bases))
fastest = {}
for key in ("rope_type", "type"):
    config = Olmo3Config(**SHAPE, rope_theta=1234.0, rope_scaling={key: "linear", "factor": 4.0})
    fastest[key] = Olmo3RotaryEmbedding(config).full_attention_inv_freq[0].item()
print(json.dumps(fastest))
as_seen = [*seen.values()] == [True, False] and [*bases.values()] == [500000.0, 1234.0]
sys.exit(not as_seen or fastest != {"rope_type": 0.25, "type": 1.0})
PROGRAM
"$folder/venv/bin/python" "$folder/ropes.py" 2>&1 | grep -v "^\[transformers\]"
