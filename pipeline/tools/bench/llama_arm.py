"""One token a pass by llama.cpp, whose weights are mapped: the page cache decides what stays in memory."""

import ctypes
import functools
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import ConfigError
from pipeline.formats.parts import ATTN, EMBED, FFN, HEAD
from pipeline.models.frequencies import attention_factor, frequencies
from pipeline.models.model_config import ModelConfig, read_config
from pipeline.models.specs import group_specs
from pipeline.tools.bench.arm_program import require_installed, say
from pipeline.tools.bench.pass_arm import Passes, PassSettings, serve_passes

FILE = "model.gguf"
ALL_LAYERS = 1 << 20
NAMES = {
    (EMBED, "embed"): "token_embd",
    (ATTN, "norm"): "blk.{layer}.attn_norm",
    (ATTN, "q"): "blk.{layer}.attn_q",
    (ATTN, "k"): "blk.{layer}.attn_k",
    (ATTN, "v"): "blk.{layer}.attn_v",
    (ATTN, "o"): "blk.{layer}.attn_output",
    (FFN, "norm"): "blk.{layer}.ffn_norm",
    (FFN, "gate"): "blk.{layer}.ffn_gate",
    (FFN, "up"): "blk.{layer}.ffn_up",
    (FFN, "down"): "blk.{layer}.ffn_down",
    (HEAD, "norm"): "output_norm",
    (HEAD, "output"): "output",
}


def check_installed() -> None:
    """As `require_installed`."""
    require_installed("llama.cpp", ("llama_cpp", "gguf"), "'gguf>=0.17' 'llama-cpp-python>=0.3.16'")


def run(settings: PassSettings) -> list[Passes]:
    """Decode greedily with mapped weights, with as many threads as torch would use, or on the GPU."""
    check_installed()
    file = Path(settings.offload_folder) / FILE
    if not file.exists():
        write_gguf(Path(settings.folder), file)
    llama_cpp = importlib.import_module("llama_cpp")
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # C calls it for as long as we are here
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_mmap = True
    parameters.n_gpu_layers = 0 if settings.torch_device.type == "cpu" else ALL_LAYERS
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
    context_parameters = llama_cpp.llama_context_default_params()
    (passes,) = settings.passes()
    (prompt,) = passes.prompts
    context_parameters.n_ctx = len(prompt) + passes.scenario.new_tokens
    context_parameters.n_threads = context_parameters.n_threads_batch = torch.get_num_threads()
    context = llama_cpp.llama_init_from_model(model, context_parameters)
    if not model or not context:
        raise ConfigError(f"{file}: llama.cpp cannot open what was written for it")
    logits_type = ctypes.POINTER(ctypes.c_float * passes.vocabulary_size)
    passes.token_ids = [[]]
    for _ in range(passes.scenario.wanted):
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        started = time.perf_counter()
        if code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(prompt))):
            raise ConfigError(f"{file}: llama_decode failed with {code}")
        logits = ctypes.cast(llama_cpp.llama_get_logits_ith(context, -1), logits_type).contents
        prompt = [int(torch.frombuffer(logits, dtype=torch.float32).argmax())]
        passes.took(time.perf_counter() - started)
        passes.token_ids[0] += prompt
    return [passes]


def write_gguf(folder: Path, file: Path) -> None:
    """Write the checkpoint as llama.cpp maps it: matrices in bf16, norms in fp32, tensor by tensor.

    Raises ConfigError for families that llama.cpp does not read as "llama".
    """
    config = read_config(folder)
    biases = config.layer_kinds[0].biases
    if config.family != "llama" or config.tied_embeddings or biases:
        have = f"{config.family} with{'' if biases else 'out'} biases"
        need = "a llama checkpoint without biases, with an output matrix of its own"
        raise ConfigError(f"--against llama.cpp: need {need}, have {have}")
    if config.rope_length(config.max_positions) or attention_factor(config.rope_scaling) != 1:
        raise ConfigError(f"--against llama.cpp: need rope type default, linear or llama3, have {config.rope_scaling}")
    gguf = importlib.import_module("gguf")
    unfinished = file.with_suffix(".part")
    writer = gguf.GGUFWriter(str(unfinished), "llama", use_temp_file=False)
    _describe(writer, gguf, config)
    tensors = list(_tensors(folder, config))
    kinds = gguf.GGMLQuantizationType
    for name, shape, is_norm, _ in tensors:
        kind, item_bytes = (kinds.F32, 4) if is_norm else (kinds.BF16, 2)
        nbytes = item_bytes * torch.Size(shape).numel()
        writer.add_tensor_info(name, shape, torch.empty(0).numpy().dtype, nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, _, is_norm, read in tensors:
        say(f"llama.cpp: writing {name}")
        tensor = read()
        data = tensor.float().numpy() if is_norm else tensor.contiguous().view(torch.uint8).numpy()
        writer.write_tensor_data(data)
    writer.close()
    unfinished.rename(file)


def _describe(writer: Any, gguf: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.layer_kinds[0].feed_forward.size)
    writer.add_head_count(config.attention.heads)
    writer.add_head_count_kv(config.attention.kv_heads)
    writer.add_key_length(config.attention.head_dim)
    writer.add_value_length(config.attention.head_dim)
    writer.add_rope_dimension_count(config.attention.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocabulary_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")


def _tensors(folder: Path, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], bool, Any]]:
    """Name, shape, whether it is a norm, and what reads it."""
    with open_checkpoint(folder, direct=False) as checkpoint:
        where = {name: tensor.file for name, tensor in checkpoint.tensors.items()}
    for (layer, part), specs in group_specs(config).items():
        for spec in specs:
            heads = {"q": config.attention.heads, "k": config.attention.kv_heads}.get(spec.short)
            read = functools.partial(_read, where[spec.name], spec.name, heads)
            yield f"{NAMES[part, spec.short].format(layer=layer)}.weight", spec.shape, len(spec.shape) == 1, read
    if config.rope_scaling is not None:
        factors = _rope_factors(config)
        yield "rope_freqs.weight", tuple(factors.shape), True, lambda: factors


def _rope_factors(config: ModelConfig) -> torch.Tensor:
    """By how much scaling divides each rotary frequency, as llama.cpp wants to be told."""
    device = torch.device("cpu")
    plain = frequencies(config.attention.head_dim, config.rope_theta, None, 0, device)
    return plain / frequencies(config.attention.head_dim, config.rope_theta, config.rope_scaling, 0, device)


def _read(file: Path, name: str, heads: int | None) -> torch.Tensor:
    """A tensor; the rows of q and k interleaved within each head, which is how llama.cpp rotates them."""
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    if heads is None or tensor.ndim == 1:
        return tensor
    rows, columns = tensor.shape
    return tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


if __name__ == "__main__":
    sys.exit(serve_passes(run, sys.argv[1:]))
