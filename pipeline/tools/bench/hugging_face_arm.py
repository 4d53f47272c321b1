"""One token a pass by transformers, all weights in memory, or by accelerate, which reads each module when it runs.

`python -m pipeline.tools.bench.hugging_face_arm JSON` is a program of its own; `penstock bench speed
--against` runs it.
"""

import importlib
import inspect
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.tools.bench.accelerate_arm import check_installed, open_offloaded
from pipeline.tools.bench.arm_program import say
from pipeline.tools.bench.pass_arm import Passes, PassSettings, serve_passes

ACCELERATE, TRANSFORMERS = "accelerate", "transformers"


def run(settings: PassSettings) -> Passes:
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
    tokens_11, cache, cache_name = torch.tensor([[passes.settings.prompt_id]]), None, name_of_cache(model)
    for _ in range(passes.wanted):
        started = time.perf_counter()
        output = model(input_ids=tokens_11, use_cache=True, **{cache_name: cache})
        cache, tokens_11 = getattr(output, cache_name), output.logits[:, -1].argmax(-1, keepdim=True)
        passes.took(time.perf_counter() - started, int(tokens_11))
    return passes


def name_of_cache(model: Any) -> str:
    """What a model of transformers calls its KV cache, as an argument and in its output: another name from 5.24 on."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


if __name__ == "__main__":
    sys.exit(serve_passes(run, sys.argv[1:]))
