"""One token a pass by transformers, all weights in memory, or by accelerate, which reads each module when it runs.

`python -m pipeline.bench.hugging_face_arm JSON` is a program of its own; `penstock bench speed --against` runs it.
"""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.accelerate_arm import check_installed, open_offloaded
from pipeline.bench.pass_arm import ArmSettings, Passes, say, serve

ACCELERATE, TRANSFORMERS = "accelerate", "transformers"


def run(settings: ArmSettings) -> Passes:
    """Decode greedily, with the KV cache of transformers."""
    check_installed()
    arm, folder = settings.options["arm"], Path(settings.folder)
    if arm == ACCELERATE:
        model = open_offloaded(folder, Path(settings.offload_folder), settings.dtype)
    else:
        say(f"{arm}: loading the model")
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=settings.dtype)
    return _decode(model.eval(), Passes(arm, settings))


@torch.inference_mode()
def _decode(model: Any, passes: Passes) -> Passes:
    tokens_11, cache = torch.tensor([[passes.settings.prompt_id]]), None
    for _ in range(passes.wanted):
        started = time.perf_counter()
        output = model(input_ids=tokens_11, past_key_values=cache, use_cache=True)
        cache, tokens_11 = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        passes.took(time.perf_counter() - started, int(tokens_11))
    return passes


if __name__ == "__main__":
    sys.exit(serve(run, sys.argv[1:]))
