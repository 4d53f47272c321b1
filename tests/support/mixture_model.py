"""A small mixture of experts in plain torch, to be trained; what it saves is a checkpoint of the family qwen3_moe.

Letters in names: B sequences, T tokens of each, N = B x T rows, D hidden, E experts of a layer, L layers, H head size.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

ROPE_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model, and of a step of its training."""

    vocabulary: int = 16384
    hidden: int = 512
    layers: int = 12
    heads: int = 8
    experts: int = 128
    chosen: int = 4
    expert_size: int = 256
    length: int = 1024
    sequences: int = 64
    rate: float = 1.2e-3
    warm_up: int = 60
    balance: float = 0.01


class Permuted(torch.autograd.Function):
    """Rows in another order; the gradient goes back by the inverse order, which needs no sums."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows[order]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.saved_tensors[0]], None, None


class Layer(nn.Module):
    """Attention with norms of queries and keys, then experts, as `qwen3_moe` computes them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, hidden, size = shape, shape.hidden, shape.expert_size
        self.norms = nn.ParameterList([torch.ones(hidden), torch.ones(hidden)])
        self.head_norms = nn.ParameterList([torch.ones(hidden // shape.heads) for _ in range(2)])
        deep = 0.02 / math.sqrt(2 * shape.layers)
        self.qkv = nn.Parameter(torch.randn(3 * hidden, hidden) * 0.02)
        self.o = nn.Parameter(torch.randn(hidden, hidden) * deep)
        self.router = nn.Parameter(torch.randn(shape.experts, hidden) * 0.02)
        self.gate_up = nn.Parameter(torch.randn(shape.experts, 2 * size, hidden) * 0.02)
        self.down = nn.Parameter(torch.randn(shape.experts, hidden, size) * deep)

    def forward(self, x_BTD: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the new hidden states, the balance (1 when even), and the share of each expert [E]."""
        batch, length, hidden = x_BTD.shape
        qkv = (norm(x_BTD, self.norms[0]) @ self.qkv.T).view(batch, length, 3, self.shape.heads, -1)
        q, k, v = (one.transpose(1, 2) for one in qkv.unbind(2))
        q, k = (rotate(norm(one, scale), turn) for one, scale in zip((q, k), self.head_norms, strict=True))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + mixed.transpose(1, 2).reshape(batch, length, hidden) @ self.o.T
        added, balance, share = self.experts(norm(x_BTD, self.norms[1]).view(-1, hidden))
        return x_BTD + added.view_as(x_BTD), balance, share

    def experts(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen, count = self.shape.chosen, self.shape.experts
        probabilities = torch.softmax((x_ND @ self.router.T).float(), dim=-1)
        weights, ids = probabilities.topk(chosen, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x_ND.dtype)
        sorted_ids, order = ids.flatten().sort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        ends = torch.searchsorted(sorted_ids, torch.arange(count, device=order.device), right=True).to(torch.int32)
        rows = Permuted.apply(x_ND[:, None].expand(-1, chosen, -1).reshape(-1, x_ND.shape[1]), order, inverse)
        gate, up = functional.grouped_mm(rows, self.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        out = functional.grouped_mm(functional.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        out = Permuted.apply(out, inverse, order).view(-1, chosen, x_ND.shape[1])
        share = ends.diff(prepend=ends.new_zeros(1)) / len(order)
        return (out * weights[..., None]).sum(1), count * (share * probabilities.mean(0)).sum(), share

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """By their names in a checkpoint."""
        q, k, v = self.qkv.chunk(3)
        yield from zip(("input_layernorm.weight", "post_attention_layernorm.weight"), self.norms, strict=True)
        yield from zip(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), self.head_norms, strict=True)
        yield from ((f"self_attn.{name}_proj.weight", one) for name, one in zip("qkvo", (q, k, v, self.o), strict=True))
        yield "mlp.gate.weight", self.router
        for index in range(self.shape.experts):
            gate, up = self.gate_up[index].chunk(2)
            for name, one in (("gate", gate), ("up", up), ("down", self.down[index])):
                yield f"mlp.experts.{index}.{name}_proj.weight", one


class Mixture(nn.Module):
    """The whole model. Its head is the embedding's own matrix, at another scale, so that it has one of its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.hidden) * 0.02)
        self.head = nn.Parameter(torch.randn(shape.vocabulary, shape.hidden) * 0.02)
        self.last_norm = nn.Parameter(torch.ones(shape.hidden))
        self.stack = nn.ModuleList([Layer(shape) for _ in range(shape.layers)])
        self.called: list[Callable[..., tuple[Tensor, Tensor, Tensor]]] = [*self.stack]

    def forward(self, ids_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mean loss of the next tokens, the mean balance, and the shares of experts [L, E]."""
        x_BTD, turn = self.embedding[ids_BT[:, :-1]], self.turn(ids_BT.shape[1] - 1)
        balances, shares = [], []
        for layer in self.called:
            x_BTD, balance, share = layer(x_BTD, turn)
            balances.append(balance)
            shares.append(share)
        logits = norm(x_BTD, self.last_norm).flatten(0, 1) @ self.head.T
        return (
            functional.cross_entropy(logits.float(), ids_BT[:, 1:].flatten()),
            torch.stack(balances).mean(),
            torch.stack(shares),
        )

    def turn(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [T, H], two halves alike."""
        half, device = self.shape.hidden // self.shape.heads // 2, self.embedding.device
        steps = ROPE_BASE ** (-torch.arange(half, device=device) / half)
        angles = torch.arange(length, device=device)[:, None] * steps
        both = torch.cat([angles, angles], dim=-1)
        return both.cos().to(self.embedding.dtype), both.sin().to(self.embedding.dtype)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        shape = self.shape
        tensors = {"model.embed_tokens.weight": self.embedding, "lm_head.weight": self.head}
        tensors["model.norm.weight"] = self.last_norm
        for index, layer in enumerate(self.stack):
            tensors |= {f"model.layers.{index}.{name}": one for name, one in layer.tensors()}
        save_file(
            {name: one.detach().to("cpu", torch.bfloat16, copy=True).contiguous() for name, one in tensors.items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(configuration(shape), indent=1))


def configuration(shape: Shape) -> dict[str, Any]:
    """What config.json says."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.expert_size,
        "moe_intermediate_size": shape.expert_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.hidden // shape.heads,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.chosen,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_BASE,
        "max_position_embeddings": 4 * shape.length,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
        "bos_token_id": None,
        "torch_dtype": "bfloat16",
    }


def norm(x: Tensor, scale: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), scale, 1e-6)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]
