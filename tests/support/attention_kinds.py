"""Kinds of attention without a config."""

from typing import Any

from pipeline.models.layers import Attention
from pipeline.models.ropes import Rope


def attention(heads: int, kv_heads: int, head_dim: int, **changes: Any) -> Attention:
    """Plain attention that turns whole heads, but for `changes`."""
    rope = Rope(theta=1e4, channels=head_dim)
    plain = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5, "rope": rope}
    return Attention(**{**plain, **changes})
