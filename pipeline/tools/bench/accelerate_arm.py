"""The same load by Hugging Face accelerate's disk offload: one static batch, greedy, weights read module by module."""

import contextlib
import importlib
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import ConfigError, RequestError
from pipeline.tools.bench.arm_program import read_bytes, require_installed, say, serve
from pipeline.tools.bench.load import Load, LoadSettings

NEEDS = ("transformers", "accelerate"), "'accelerate>=1.10' 'transformers>=5'"
"""The modules that layers of transformers on accelerate need, and the packages that have them."""


def run(settings: LoadSettings) -> list[dict[str, Any]]:
    """Measure each number of requests in turn in one loaded model; rows as those of `Throughput`, without floors."""
    model = open_offloaded(Path(settings.folder), Path(settings.offload_folder), settings.options.get("dtype", "auto"))
    load = Load(**settings.load)
    measure(model, load.warm_up, 1)
    return [measure(model, load, count) for count in settings.requests]


def open_offloaded(folder: Path, offload_folder: Path, told_dtype: str) -> Any:
    """A model of transformers whose weights lie in `offload_folder`, where they are written once."""
    require_installed("accelerate", *NEEDS)
    say("accelerate: importing")
    accelerate, transformers = importlib.import_module("accelerate"), importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(folder)
    dtype = config.dtype if told_dtype == "auto" else getattr(torch, told_dtype)
    with accelerate.init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    _write_weights(folder, offload_folder, set(model.state_dict()), dtype)
    accelerate.disk_offload(model, offload_folder, execution_device=torch.device("cpu"))
    return model


def _write_weights(folder: Path, offload_folder: Path, wanted: set[str], dtype: torch.dtype) -> None:
    """Write every tensor of the checkpoint on its own, so that memory never holds two; once for all rounds.

    `load_checkpoint_and_dispatch` makes the same files; it cannot offload all modules of a safetensors checkpoint
    (accelerate 1.15), and maps a whole shard at a time.
    """
    if (offload_folder / "index.json").exists():
        return
    utilities = importlib.import_module("accelerate.utils")
    index: dict[str, Any] = {}
    with open_checkpoint(folder, direct=False) as checkpoint:
        where = {name: tensor.file for name, tensor in checkpoint.tensors.items() if name in wanted}
    for name, file in where.items():
        say(f"accelerate: writing {name}")
        with safe_open(file, framework="pt") as opened:
            index = utilities.offload_weight(opened.get_tensor(name).to(dtype), name, str(offload_folder), index)
    if missing := wanted - set(index):
        need = "a checkpoint with an output matrix of its own (make-checkpoint --no-tied-embeddings)"
        raise ConfigError(f"{folder}: no tensor {min(missing)!r}; accelerate needs {need}")
    utilities.save_offload_index(index, str(offload_folder))


def measure(model: Any, load: Load, requests: int) -> dict[str, Any]:
    """Run so many requests, whose prompts have one length, as one batch through a model of transformers."""
    prompts_BT = torch.tensor(load.prompts(requests, model.config.vocab_size))
    # Without an end of text, so that all requests of the batch give all their tokens, as ours do.
    greedy = importlib.import_module("transformers").GenerationConfig(do_sample=False, pad_token_id=0)
    greedy.max_new_tokens, model.generation_config = load.new_tokens, greedy
    model.eval()
    read_before, started = read_bytes(), time.perf_counter()
    with torch.inference_mode(), _pass_times(model, requests) as passes:
        tokens_BT = model.generate(prompts_BT, attention_mask=torch.ones_like(prompts_BT))
    seconds, read = time.perf_counter() - started, read_bytes() - read_before
    new_BT = tokens_BT[:, load.longest :]
    tokens = requests * load.new_tokens
    if new_BT.numel() != tokens:
        raise RequestError(f"accelerate, {requests} requests: need {tokens} new tokens, have {new_BT.numel()}")
    first = passes[0][1] - started
    return {
        "requests": requests,
        "passes": len(passes),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "pass_seconds": statistics.median(end - begin for begin, end in passes),
        "tokens_per_pass": requests * (load.longest + load.new_tokens - 1) / len(passes),
        "first_token_seconds": first,
        "output_token_seconds": (seconds - first) / (load.new_tokens - 1) if load.new_tokens > 1 else None,
        "read_bytes_per_pass": read / len(passes),
        "read_bytes_per_token": read / tokens,
        "token_ids": new_BT.tolist(),
    }


@contextlib.contextmanager
def _pass_times(model: Any, requests: int) -> Iterator[list[tuple[float, float]]]:
    """When each pass through the model began and ended."""
    passes: list[tuple[float, float]] = []
    begun = math.nan

    def begin(*_: object) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def end(*_: object) -> None:
        passes.append((begun, time.perf_counter()))
        say(f"accelerate, {requests} requests: {len(passes)} passes, the last in {passes[-1][1] - begun:.1f} s")

    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    sys.exit(serve(run, LoadSettings, sys.argv[1:]))
