"""A bare loop of CUDA graphs over half-layers, with torch's own operations and all weights on the GPU.

An upper bound for what launching can reach: greedy, a static batch, one graph for each half-layer and one for the
head, and a KV cache of a fixed number of positions, all of which every pass attends to behind a mask.
`python -m pipeline.tools.bench.graph_arm JSON` is a program of its own; `penstock bench speed --against graphs`
runs it.

Shape letters in names: B requests, N query heads, K kv heads, G query heads of a kv head, L positions, H head dim,
D hidden, V vocabulary.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.errors import ConfigError
from pipeline.models.frequencies import frequencies
from pipeline.models.model_config import ModelConfig, read_config
from pipeline.models.ropes import attention_factor
from pipeline.tools.bench.arm_program import say
from pipeline.tools.bench.pass_arm import ArmPasses, PassSettings, serve_passes

LEAST_POSITIONS = 192


def run(settings: PassSettings) -> list[ArmPasses]:
    """Decode every scenario; the prompt is computed token by token, by the same graphs."""
    folder, device = Path(settings.folder), settings.torch_device
    config = read_config(folder)
    if config.family != "llama" or config.layer_kinds[0].biases or config.rope_length(config.max_positions):
        raise ConfigError(f"--against graphs: need a llama checkpoint without biases, have {config.family}")
    say("graphs: loading the weights")
    weights = _weights(folder, settings.dtype, device)
    measured = settings.passes()
    with torch.inference_mode():
        for passes in measured:
            _decode(_Loop(config, weights, passes, device), passes)
    return measured


def _weights(folder: Path, told_dtype: str, device: torch.device) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    with open_checkpoint(folder, direct=False) as checkpoint:
        files = list(checkpoint.files)
    weights = {name: tensor for file in files for name, tensor in load_file(file, device=str(device)).items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights if told_dtype == "auto" else {k: v.to(getattr(torch, told_dtype)) for k, v in weights.items()}


def _decode(loop: "_Loop", passes: ArmPasses) -> None:
    prompts_BT = torch.tensor(passes.prompts)
    for column in range(prompts_BT.shape[1] - 1):
        loop.next_tokens(column, prompts_BT[:, column])
    tokens_B, token_ids = prompts_BT[:, -1], []
    for index in range(passes.scenario.wanted):
        started = time.perf_counter()
        tokens_B = loop.next_tokens(prompts_BT.shape[1] - 1 + index, tokens_B)
        token_ids.append(tokens_B.tolist())
        passes.took(time.perf_counter() - started)
    passes.token_ids = [list(each) for each in zip(*token_ids, strict=True)]


class _Loop:
    """The buffers of one scenario, at fixed addresses, and what computes on them, in order."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, torch.Tensor], passes: ArmPasses, device: torch.device
    ) -> None:
        self._config, self._weights = config, weights
        (self._kind,), (self._rope,) = config.attentions, config.ropes
        kind, requests = self._kind, passes.scenario.requests
        dtype = weights["model.norm.weight"].dtype
        self._positions = max(LEAST_POSITIONS, passes.scenario.prompt_tokens + passes.scenario.new_tokens)
        shape = (config.layers, 2, requests, kind.kv_heads, self._positions, kind.head_dim)
        self._kv = torch.zeros(shape, dtype=dtype, device=device)
        self._tokens_B = torch.zeros(requests, dtype=torch.int64, device=device)
        self._position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._mask_L = torch.zeros(self._positions, dtype=torch.bool, device=device)
        self._turn_2H = torch.zeros(2, kind.head_dim, dtype=dtype, device=device)
        self._hidden_BD = torch.zeros(requests, config.hidden_size, dtype=dtype, device=device)
        self._frequencies = frequencies(self._rope, 0, device).repeat(2)
        halves: list[Callable[[], None]] = [self._begin]
        for layer in range(config.layers):
            halves += [partial(self._attention, layer), partial(self._ffn, layer)]
        self._steps = _captured([*halves, self._head], device)

    def next_tokens(self, position: int, tokens_B: torch.Tensor) -> torch.Tensor:
        """Compute one pass; returns the tokens in host memory."""
        self._tokens_B.copy_(tokens_B)
        self._position_1.fill_(position)
        for step in self._steps:
            step()
        return self._tokens_B.cpu()

    def _begin(self) -> None:
        self._hidden_BD.copy_(functional.embedding(self._tokens_B, self._weights["model.embed_tokens.weight"]))
        self._mask_L.copy_(torch.arange(self._positions, device=self._mask_L.device) <= self._position_1)
        angles_H = self._position_1.float() * self._frequencies
        factor = attention_factor(self._rope)
        self._turn_2H.copy_(torch.stack((angles_H.cos(), angles_H.sin())) * factor)

    def _attention(self, layer: int) -> None:
        kind, kv = self._kind, self._kv[layer]
        normed_BD = self._normed(f"model.layers.{layer}.input_layernorm")
        q_BNH, k_BKH, v_BKH = (
            self._product(f"model.layers.{layer}.self_attn.{name}_proj", normed_BD).unflatten(1, (-1, kind.head_dim))
            for name in ("q", "k", "v")
        )
        kv[0].index_copy_(2, self._position_1, self._rotated(k_BKH).unsqueeze(2))
        kv[1].index_copy_(2, self._position_1, v_BKH.unsqueeze(2))
        q_BKGH = self._rotated(q_BNH).unflatten(1, (kind.kv_heads, -1))
        out_BKGH = functional.scaled_dot_product_attention(q_BKGH, kv[0], kv[1], attn_mask=self._mask_L[None, :])
        self._hidden_BD += self._product(f"model.layers.{layer}.self_attn.o_proj", out_BKGH.flatten(1))

    def _ffn(self, layer: int) -> None:
        normed_BD, name = self._normed(f"model.layers.{layer}.post_attention_layernorm"), f"model.layers.{layer}.mlp"
        gate, up = (self._product(f"{name}.{part}_proj", normed_BD) for part in ("gate", "up"))
        self._hidden_BD += self._product(f"{name}.down_proj", functional.silu(gate) * up)

    def _head(self) -> None:
        self._tokens_B.copy_(self._product("lm_head", self._normed("model.norm")).argmax(-1))

    def _normed(self, name: str) -> torch.Tensor:
        weight = self._weights[f"{name}.weight"]
        normed: torch.Tensor = functional.rms_norm(self._hidden_BD, [*weight.shape], weight, self._config.norm_epsilon)
        return normed

    def _product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self._weights[f"{name}.weight"].T

    def _rotated(self, x_BNH: torch.Tensor) -> torch.Tensor:
        first, second = x_BNH.chunk(2, dim=-1)
        cos_H, sin_H = self._turn_2H.unbind()
        return x_BNH * cos_H + torch.cat((-second, first), dim=-1) * sin_H


def _captured(steps: Sequence[Callable[[], None]], device: torch.device) -> Sequence[Callable[[], None]]:
    """A graph of each step, which has run once before; on a CPU, where there are none, the steps themselves.

    What `torch.cuda.graph` does beside the capturing, such as collecting garbage, takes longer than all the rest here.
    """
    if device.type == "cpu":
        return steps
    stream, pool, graphs = torch.cuda.Stream(), torch.cuda.graph_pool_handle(), []
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for step in steps:
            step()
        stream.synchronize()
        for step in steps:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool)
            step()
            graph.capture_end()
            graphs.append(graph.replay)
    torch.cuda.synchronize()
    return graphs


if __name__ == "__main__":
    sys.exit(serve_passes(run, sys.argv[1:]))
