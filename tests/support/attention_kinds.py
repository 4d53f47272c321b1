"""Kinds of attention without a config."""

from typing import Any

from pipeline.models.compressed import CompressedAttention
from pipeline.models.latents import LatentAttention
from pipeline.models.layers import Attention
from pipeline.models.ropes import Rope


def attention(heads: int, kv_heads: int, head_dim: int, **changes: Any) -> Attention:
    """Plain attention that turns whole heads, but for `changes`."""
    rope = Rope(theta=1e4, channels=head_dim)
    plain = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5, "rope": rope}
    return Attention(**{**plain, **changes})


def latent_attention(heads: int, rank: int, turned: int, **changes: Any) -> LatentAttention:
    """Latent attention that turns so many channels of a head."""
    plain = {"heads": heads, "kv_heads": 1, "head_dim": turned + rank, "scale": 0.3, "rank": rank, "query_rank": None}
    rest = {"rope": Rope(theta=1e4, channels=turned), "still_dim": 8, "output_dim": 8, "latent_epsilon": 1e-6}
    return LatentAttention(**{**plain, **rest, **changes})


def compressing_attention(heads: int, head_dim: int, turned: int, **changes: Any) -> CompressedAttention:
    """Attention to a window and to what its `changes` compress, of which so many channels of a head turn."""
    rope = Rope(theta=1e4, channels=turned, interleaved=True)
    plain = {"heads": heads, "kv_heads": 1, "head_dim": head_dim, "scale": head_dim**-0.5, "rope": rope, "sinks": True}
    rest = {"window": 64, "query_rank": 96, "groups": 2, "output_rank": 64, "norm_epsilon": 1e-6}
    return CompressedAttention(**{**plain, **rest, **changes})
