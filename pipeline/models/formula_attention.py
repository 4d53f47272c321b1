"""Attention written out, for kinds that no kernel of torch computes: scores that are capped, sinks, and values of
another width than keys.

All in fp32. The bits of a row follow from the shapes and from what it sees: what is masked adds exact zeros.

Shape letters in names: C tokens, S positions attended, N query heads, K kv heads, G query heads that share a kv head,
H head dim, that of values where these are narrower.
"""

import torch

from pipeline.models.layers import Attention


def needs_formula(kind: Attention) -> bool:
    """Whether no kernel of torch computes it."""
    return kind.softcap is not None or kind.sinks or kind.value_dim != kind.head_dim


def attend_by_formula(
    q_CNH: torch.Tensor,
    keys_SKH: torch.Tensor,
    values_SKH: torch.Tensor,
    kind: Attention,
    sinks_N: torch.Tensor | None,
    visible_CS: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of these tokens over what each may look at, all where there is no mask; returns [C, N * H]."""
    tokens, kv_heads = len(q_CNH), keys_SKH.shape[1]
    q_KGCH = q_CNH.float().view(tokens, kv_heads, -1, kind.head_dim).permute(1, 2, 0, 3)
    keys_KHS, values_KSH = keys_SKH.float().permute(1, 2, 0), values_SKH.float().transpose(0, 1)
    scores_KGCS = (q_KGCH.flatten(1, 2) @ keys_KHS).unflatten(1, (-1, tokens)).mul_(kind.scale)
    if kind.softcap is not None:
        scores_KGCS.div_(kind.softcap).tanh_().mul_(kind.softcap)
    if visible_CS is not None:
        scores_KGCS.masked_fill_(~visible_CS, -torch.inf)
    most_KGC1 = scores_KGCS.amax(-1, keepdim=True)
    if sinks_N is not None:
        sinks_KG11 = sinks_N.float().view(kv_heads, -1, 1, 1)
        most_KGC1 = torch.maximum(most_KGC1, sinks_KG11)
    weights_KGCS = scores_KGCS.sub_(most_KGC1).exp_()
    total_KGC1 = weights_KGCS.sum(-1, keepdim=True)
    if sinks_N is not None:
        total_KGC1 += (sinks_KG11 - most_KGC1).exp_()
    mixed_KGCH: torch.Tensor = (weights_KGCS.flatten(1, 2) @ values_KSH).unflatten(1, (-1, tokens)).div_(total_KGC1)
    return mixed_KGCH.permute(2, 0, 1, 3).reshape(tokens, -1).to(q_CNH.dtype)
