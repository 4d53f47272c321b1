"""What the first pass would do for the first time, done in small while the model is opened.

Threads begin, the file of the embedding is opened, torch loads its kernels and begins threads of its own: 10 to 40 ms,
and 300 ms on a GPU, that the first request would otherwise wait for. A GPU gets its kernels for quantised matrices,
which takes seconds the first time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from actors.core.event import Event
from pipeline.errors import ConfigError
from pipeline.formats.decoding import compile_products
from pipeline.formats.dense import linear
from pipeline.generation.choosing import fused
from pipeline.generation.folder import naming_files
from pipeline.generation.one_section import embedding_of
from pipeline.generation.section import COMPUTE
from pipeline.models import delta_net
from pipeline.models.compressed import CompressedAttention
from pipeline.models.layers import DeltaNet
from pipeline.models.model_config import ModelConfig
from pipeline.models.ops import infer, rms_norm
from pipeline.models.pass_attention import attend_all
from pipeline.models.pass_rows import few_rows
from pipeline.models.rotary import rotary
from pipeline.models.specs import group_specs
from pipeline.state.kv_layout import KvLayout
from pipeline.system.limits import reached_limit

if TYPE_CHECKING:
    from pipeline.generation.model_runtime import ModelRuntime
    from pipeline.generation.section_runtime import SectionRuntime

DECODED_FOR = (1, 9, 65)
"""Rows of x that quantised matrices are multiplied by with one kernel, with another one, and decoded for."""
FEW_ROWS = 1024
"""The rows of a matrix that are enough for torch to share the work among its threads."""
TOKEN_BLOCKS = 4
"""Tokens of a prompt, in blocks of `Device.block_rows`, that are multiplied by it, to guess how long they take until a
pass has told."""
QUICK_SECONDS, MOST_PRODUCTS = 0.001, 8
"""Products that are quick are repeated: what counts is the quickest, as the host may be late with launching one."""
BESIDE_PRODUCTS = 2
"""On a GPU a prompt takes so many times as long as its products, on a CPU less; to guess too long does little harm."""


def compute_zeros(section: "SectionRuntime", after: Sequence[Event] = ()) -> Event:
    """Begin to compute with zeros where a section computes."""
    work = functools.partial(_compute, section.config, section.dtype, section.device.torch_device)
    return section.device.launch(COMPUTE, functools.partial(infer, work), after)


async def rehearse(runtime: "ModelRuntime") -> None:
    """Fetch a row of the embedding, and compute with zeros in each section.

    Raises CheckpointError where the row cannot be read, ConfigError where a device cannot compute.
    """
    with naming_files(runtime.folder):
        fetched = await embedding_of(runtime.sections[0]).fetch([0])
    tokens, seconds = TOKEN_BLOCKS * runtime.sections[0].device.block_rows, 0.0
    for section in runtime.sections:
        try:
            await compute_zeros(section, (fetched,)).wait()
            if section.config.quantization.rules and section.device.torch_device.type == "cuda":
                compiling = functools.partial(infer, functools.partial(_compile_products, section))
                await section.device.launch(COMPUTE, compiling, ()).wait()
            seconds += await _prompt_seconds(section, tokens)
        except RuntimeError as error:
            if reached_limit(error):
                raise
            what = f"{section.device.torch_device} failed to compute with zeros in {section.dtype}: {error}"
            raise ConfigError(f"{what}; choose another device or dtype, or leave it more memory") from error
        section.device.have_run()
    runtime.pass_rate.took(tokens, seconds)


def _compile_products(section: "SectionRuntime") -> None:
    """Make the kernels for the formats and shapes of its layers."""
    matrices = []
    for group in section.catalog.groups:
        vectors = {vector.short: vector for vector in group.vectors}
        matrices += [(one, vectors.get(f"{one.short}_bias")) for one in group.matrices]
    counts = DECODED_FOR[-1:] if section.settings.batch_invariant else DECODED_FOR
    compile_products(matrices, counts, section.dtype, section.device.torch_device)


async def _prompt_seconds(section: "SectionRuntime", tokens: int) -> float:
    """About the seconds in which a section computes so many tokens of a prompt, by a product with a small matrix."""
    size = section.config.hidden_size
    zeros = functools.partial(torch.zeros, dtype=section.dtype, device=section.device.torch_device)
    factors: list[torch.Tensor] = []

    def make() -> None:
        factors.extend((zeros(tokens, size), zeros(FEW_ROWS, size)))

    def multiply() -> None:
        linear(*factors)

    async def seconds(work: Callable[[], None]) -> float:
        done = section.device.launch(COMPUTE, functools.partial(infer, work), ())
        await done.wait()
        began, ended = done.span or (0.0, 0.0)
        return ended - began

    await seconds(make)
    products = [await seconds(multiply), await seconds(multiply)]  # the first may load kernels
    while min(products) < QUICK_SECONDS and len(products) < MOST_PRODUCTS:
        products.append(await seconds(multiply))
    groups, layers = group_specs(section.config), {layer for layer, _ in section.catalog.order}
    weights = sum(math.prod(spec.shape) for key, specs in groups.items() if key[0] in layers for spec in specs)
    return BESIDE_PRODUCTS * min(products) * weights / (FEW_ROWS * size)


def _compute(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """The steps of half a layer, for a token of a prompt and one of an answer."""
    zeros = functools.partial(torch.zeros, dtype=dtype, device=device)
    hidden_TD = zeros(2, config.hidden_size)
    linear(rms_norm(hidden_TD, hidden_TD[0], config.norm_epsilon), zeros(FEW_ROWS, config.hidden_size))
    rows = few_rows(device)
    for kind in config.attentions:
        if isinstance(kind, CompressedAttention):  # which has no kernels of its own
            continue
        layout = KvLayout.of(kind, 1, dtype)
        kv = layout.view(torch.zeros(layout.layer_bytes, dtype=torch.uint8, device=device))
        turn = None if kind.rope is None else rotary(kind.rope, torch.zeros(2, device=device))
        q_TNH = zeros(2, kind.heads, kind.head_dim)
        keys_TKH = zeros(2, kind.kv_heads, kind.head_dim)
        if kind.query_key_norms:
            rms_norm(keys_TKH, keys_TKH[0, 0], config.norm_epsilon)
        attend_all(q_TNH, keys_TKH, keys_TKH, turn, kv, rows, kind)
    for net in {one.mixer for one in config.layer_kinds if isinstance(one.mixer, DeltaNet)}:
        delta_net.mix_projected(net, *delta_net.zeros_for(net, device, dtype, 2), rows, config.norm_epsilon)
    fused(device, config.vocabulary_size)
