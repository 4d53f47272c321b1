"""One token a pass by llama.cpp, whose weights are mapped: the page cache decides what stays in memory."""

import ctypes
import functools
import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pipeline.errors import ConfigError
from pipeline.formats.decoding import DecodableRows
from pipeline.formats.dense import StoredDense
from pipeline.formats.encoded import Encoded
from pipeline.formats.matrix import Matrix, StoredMatrix
from pipeline.formats.parts import ATTN, EMBED, FFN, HEAD
from pipeline.formats.tensors import TensorRange
from pipeline.formats.words import unpacked
from pipeline.groups.groups import find_groups
from pipeline.models.feed_forwards import FeedForward
from pipeline.models.frequencies import frequencies
from pipeline.models.model_config import ModelConfig, read_config
from pipeline.models.ropes import Rope, attention_factor
from pipeline.models.specs import group_specs
from pipeline.tools.bench.arm_program import require_installed, say
from pipeline.tools.bench.pass_arm import SAMPLED, ArmPasses, PassSettings, serve_passes
from pipeline.tools.convert.convert import stored_tensor, stored_views

FILE = "model.gguf"
Q4_0_COLUMNS, Q4_0_ZERO = 32, 8
"""Those of a block, a scale in fp16 and two numbers a byte, the first half of them low; and what is taken from each."""
ALL_LAYERS = 1 << 20
SEED = 0
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
    require_installed("llama.cpp", ("llama_cpp", "gguf"), "'gguf>=0.17' 'llama-cpp-python>=0.3.36'")


def remark(folder: Path) -> str:
    """Return what else than ours it runs of a checkpoint; empty where that is nothing."""
    if not read_config(folder).quantization.rules:
        return ""
    return (
        "llama.cpp: runs the same numbers and scales as Q4_0, 4.5 bits a number, mapped, and multiplies them by "
        "activations that it rounds to 8 bits."
    )


def run(settings: PassSettings) -> list[ArmPasses]:
    """Decode one request with mapped weights, with as many threads as torch would use, or on the GPU."""
    check_installed()
    file = Path(settings.gguf or Path(settings.offload_folder) / FILE)
    if not file.exists():
        write_gguf(Path(settings.folder), file)
    llama_cpp = importlib.import_module("llama_cpp")
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # C calls it for as long as we are here
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    parameters.use_extra_bufts = False  # where Q4_0 would be copied, all of it, in an order that computes faster
    parameters.n_gpu_layers = 0 if settings.torch_device.type == "cpu" else ALL_LAYERS
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
    measured = settings.passes()
    for passes in measured:
        _decode(llama_cpp, model, passes, file)
    return measured


def _decode(llama_cpp: Any, model: Any, passes: ArmPasses, file: Path) -> None:
    """Token by token, in a context of its own."""
    (prompt,) = passes.prompts
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = tokens_in_all = len(prompt) + passes.scenario.new_tokens
    parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
    context = llama_cpp.llama_init_from_model(model, parameters) if model else None
    if not context:
        raise ConfigError(f"{file}: llama.cpp cannot open what was written for it")
    sampler = _sampler(llama_cpp, passes, tokens_in_all)
    passes.token_ids = [[]]
    for _ in range(passes.scenario.wanted):
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        started = time.perf_counter()
        if code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(prompt))):
            raise ConfigError(f"{file}: llama_decode failed with {code}")
        prompt = [int(llama_cpp.llama_sampler_sample(sampler, context, -1))]
        passes.took(time.perf_counter() - started)
        passes.token_ids[0] += prompt
    llama_cpp.llama_sampler_free(sampler)
    llama_cpp.llama_free(context)


def _sampler(llama_cpp: Any, passes: ArmPasses, tokens_in_all: int) -> Any:
    """Its own, for the most likely token, or to draw one as all arms do."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if not passes.scenario.sampled:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
        return chain
    for step in (
        llama_cpp.llama_sampler_init_penalties(
            passes.vocabulary_size, tokens_in_all, SAMPLED["repetition_penalty"], 0.0, 0.0
        ),
        llama_cpp.llama_sampler_init_temp(SAMPLED["temperature"]),
        llama_cpp.llama_sampler_init_top_p(SAMPLED["top_p"], 1),
        llama_cpp.llama_sampler_init_dist(SEED),
    ):
        llama_cpp.llama_sampler_chain_add(chain, step)
    return chain


def write_gguf(folder: Path, file: Path) -> None:
    """Write the checkpoint as llama.cpp maps it, tensor by tensor: norms in fp32, matrices in bf16, int4 as Q4_0.

    Raises ConfigError for families that llama.cpp does not read as "llama", and what Q4_0 cannot hold as it is.
    """
    config = read_config(folder)
    biases = config.layer_kinds[0].biases
    if config.family != "llama" or config.tied_embeddings or biases:
        have = f"{config.family} with{'' if biases else 'out'} biases"
        need = "a llama checkpoint without biases, with an output matrix of its own"
        raise ConfigError(f"--against llama.cpp: need {need}, have {have}")
    (rope,) = config.ropes
    if config.rope_length(config.max_positions) or attention_factor(rope) != 1:
        raise ConfigError(f"--against llama.cpp: need rope type default, linear or llama3, have {rope.scaling}")
    gguf = importlib.import_module("gguf")
    unfinished = file.with_suffix(".part")
    writer = gguf.GGUFWriter(str(unfinished), "llama", use_temp_file=False)
    _describe(writer, gguf, config)
    with open_checkpoint(folder, direct=False) as checkpoint:
        tensors = list(_tensors(checkpoint, config))
        for name, shape, kind, _ in tensors:
            raw = gguf.GGMLQuantizationType[kind]
            columns, block_bytes = gguf.GGML_QUANT_SIZES[raw]
            nbytes = torch.Size(shape).numel() // columns * block_bytes
            writer.add_tensor_info(name, shape, torch.empty(0).numpy().dtype, nbytes, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _, _, read in tensors:
            say(f"llama.cpp: writing {name}")
            writer.write_tensor_data(read().contiguous().view(torch.uint8).numpy())
    writer.close()
    unfinished.rename(file)


def _describe(writer: Any, gguf: Any, config: ModelConfig) -> None:
    (kind,), (rope,) = config.attentions, config.ropes
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    if isinstance(feed_forward := config.layer_kinds[0].feed_forward, FeedForward):
        writer.add_feed_forward_length(feed_forward.size)
    writer.add_head_count(kind.heads)
    writer.add_head_count_kv(kind.kv_heads)
    writer.add_key_length(kind.head_dim)
    writer.add_value_length(kind.head_dim)
    writer.add_rope_dimension_count(kind.head_dim)
    writer.add_rope_freq_base(rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocabulary_size)
    quantised = config.quantization.rules
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0 if quantised else gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")


def _tensors(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], str, Any]]:
    """Name, shape, how it is stored, and what reads it."""
    (kind,), (rope,) = config.attentions, config.ropes
    for group in find_groups(group_specs(config), checkpoint, config.quantization.format_of):
        names = {
            short: f"{name.format(layer=group.layer)}.weight"
            for (part, short), name in NAMES.items()
            if part == group.name
        }
        for vector in group.vectors:
            yield names[vector.short], vector.shape, "F32", functools.partial(_vector, vector, checkpoint)
        for matrix in group.matrices:
            heads = {"q": kind.heads, "k": kind.kv_heads}.get(matrix.short)
            stored = "BF16" if isinstance(matrix, StoredDense) else "Q4_0"
            read = functools.partial(_matrix, matrix, checkpoint, heads)
            yield names[matrix.short], (matrix.rows, matrix.columns), stored, read
    if rope.scaling is not None:
        factors = _rope_factors(rope)
        yield "rope_freqs.weight", tuple(factors.shape), "F32", lambda: factors


def _rope_factors(rope: Rope) -> torch.Tensor:
    """By how much scaling divides each rotary frequency, as llama.cpp wants to be told."""
    device = torch.device("cpu")
    return frequencies(replace(rope, scaling=None), 0, device) / frequencies(rope, 0, device)


def _vector(vector: TensorRange, checkpoint: Checkpoint) -> torch.Tensor:
    return stored_tensor(vector, checkpoint).float()


def _matrix(stored: StoredMatrix, checkpoint: Checkpoint, heads: int | None) -> torch.Tensor:
    """Its rows; those of q and k interleaved within each head, which is how llama.cpp rotates them."""
    matrix: Matrix = stored.over(stored_views(stored, checkpoint))
    if isinstance(stored, StoredDense):
        rows = matrix.decoded(torch.bfloat16)
    else:
        rows = q4_0_blocks(matrix.encoded() if isinstance(matrix, DecodableRows) else None)
    if heads is None:
        return rows
    return rows.view(heads, 2, stored.rows // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def q4_0_blocks(encoded: Encoded | None) -> torch.Tensor:
    """The same numbers and scales as blocks of Q4_0, uint8 [F, bytes].

    Raises ConfigError for what has other numbers, zeros, or groups that do not consist of blocks.
    """
    if encoded is None or not _is_q4_0(encoded):
        need = f"need symmetric int4 in groups of a multiple of {Q4_0_COLUMNS} columns, as convert --to int4 writes it"
        raise ConfigError(f"--against llama.cpp: {need}, or weights that are not quantised")
    rows = encoded.shape[0]
    numbers = unpacked(encoded.numbers, 4).view(rows, -1, 2, Q4_0_COLUMNS // 2)
    pairs = numbers[:, :, 0] | numbers[:, :, 1] << 4
    scales = encoded.scales.repeat_interleave(encoded.group // Q4_0_COLUMNS, 1).to(torch.float16)
    blocks = torch.cat((scales.unsqueeze(-1).view(torch.uint8), pairs), dim=-1)
    return blocks.view(rows, -1)


def _is_q4_0(encoded: Encoded) -> bool:
    symmetric = isinstance(encoded.zeros, int) and encoded.zeros == Q4_0_ZERO
    return symmetric and encoded.kind == "int4" and encoded.order is None and encoded.group % Q4_0_COLUMNS == 0


if __name__ == "__main__":
    sys.exit(serve_passes(run, sys.argv[1:]))
