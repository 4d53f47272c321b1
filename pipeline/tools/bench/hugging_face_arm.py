"""One token a pass by layers of transformers, from wherever one of several programs puts their weights."""

import importlib
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.tools.bench.accelerate_arm import NEEDS, open_offloaded
from pipeline.tools.bench.arm_program import require_installed, say
from pipeline.tools.bench.pass_arm import SAMPLED, ArmPasses, PassSettings, serve_passes
from pipeline.tools.bench.ring import stream_through_ring

ACCELERATE, TRANSFORMERS, DIFFUSERS, RING = "accelerate", "transformers", "diffusers", "ring"
HOST = torch.device("cpu")


def check_installed(arm: str) -> None:
    """As `require_installed`; all arms have their layers from transformers."""
    if arm == DIFFUSERS:
        require_installed(arm, ("diffusers",), "'diffusers>=0.35'")
    require_installed(arm, *NEEDS)


def run(settings: PassSettings) -> list[ArmPasses]:
    """Generate in a static batch, with the KV cache of transformers."""
    say(f"{settings.arm}: loading the model")
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, device, measured = OPEN[settings.arm](settings), settings.torch_device, settings.passes()
    model.eval()
    for passes in measured:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        generate(model, passes, device)
    return measured


@torch.inference_mode()
def generate(model: Any, passes: ArmPasses, device: torch.device) -> None:
    """Run one scenario; each pass ends when its tokens are in host memory."""
    scenario, cache_name = passes.scenario, name_of_cache(model)
    prompts_BT = torch.tensor(passes.prompts, device=device)
    choose = _drawing() if scenario.sampled else lambda _, logits_BV: logits_BV.argmax(-1, keepdim=True)
    seen_BT = tokens_BT = prompts_BT
    cache = None
    passes.token_ids = [[] for _ in passes.prompts]
    for _ in range(scenario.wanted):
        started = time.perf_counter()
        output = model(input_ids=tokens_BT, use_cache=True, logits_to_keep=1, **{cache_name: cache})
        tokens_BT = choose(seen_BT, output.logits[:, -1])
        chosen = tokens_BT.flatten().tolist()
        passes.took(time.perf_counter() - started)
        for own, token_id in zip(passes.token_ids, chosen, strict=True):
            own.append(token_id)
        if scenario.first_token:
            tokens_BT = prompts_BT
        else:
            cache = getattr(output, cache_name)
            seen_BT = torch.cat((seen_BT, tokens_BT), dim=1)


def _drawing() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return what draws a token of each row, from the tokens before and the logits, all on the device of these."""
    rules = importlib.import_module("transformers.generation.logits_process")
    each = [
        rules.RepetitionPenaltyLogitsProcessor(SAMPLED["repetition_penalty"]),
        rules.TemperatureLogitsWarper(SAMPLED["temperature"]),
        rules.TopPLogitsWarper(SAMPLED["top_p"]),
    ]

    def draw(seen_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        scores_BV = logits_BV.float()
        for rule in each:
            scores_BV = rule(seen_BT, scores_BV)
        return torch.multinomial(scores_BV.softmax(-1), 1)

    return draw


def _loaded(settings: PassSettings, device: torch.device | None = None) -> Any:
    """All weights on the device that computes, or on another one."""
    transformers, device = importlib.import_module("transformers"), device or settings.torch_device
    where = {} if device.type == "cpu" else {"device_map": device}
    return transformers.AutoModelForCausalLM.from_pretrained(settings.folder, dtype=settings.dtype, **where)


def _offloaded(settings: PassSettings) -> Any:
    """With a GPU in host memory, from where each module copies its weights when it runs; else on the disk."""
    if settings.torch_device.type == "cpu":
        return open_offloaded(Path(settings.folder), Path(settings.offload_folder), settings.dtype)
    accelerate = importlib.import_module("accelerate")
    return accelerate.cpu_offload(_loaded(settings, HOST), execution_device=settings.torch_device)


def _in_groups(settings: PassSettings) -> Any:
    """Each layer a group, copied on a stream of its own while the one before computes; the head stays."""
    hooks, model = importlib.import_module("diffusers.hooks"), _loaded(settings, HOST)
    hooks.apply_group_offloading(
        model.model,
        onload_device=settings.torch_device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=settings.torch_device.type == "cuda",
        record_stream=settings.torch_device.type == "cuda",
    )
    model.lm_head.to(settings.torch_device)
    return model


def _in_ring(settings: PassSettings) -> Any:
    model = _loaded(settings, HOST)
    stream_through_ring(model.model.layers, settings.torch_device)
    return model.to(settings.torch_device)


OPEN: Mapping[str, Callable[[PassSettings], Any]] = {
    TRANSFORMERS: _loaded,
    ACCELERATE: _offloaded,
    DIFFUSERS: _in_groups,
    RING: _in_ring,
}


def name_of_cache(model: Any) -> str:
    """Return the name of the KV cache in arguments and outputs of a model of transformers: another one from 5.24 on."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


if __name__ == "__main__":
    sys.exit(serve_passes(run, sys.argv[1:]))
