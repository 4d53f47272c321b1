"""The tensors of DeepSeek-V4-Flash as it was published first: name, rows and columns, dtype; of layers of each kind."""

WINDOW, SPARSE, HEAVY = (0, 1), (2, 4), (3,)
"""Layers by what their attention looks at, of the first five."""
EVERY, BY_TOKEN, BY_ROUTER = (0, 1, 2, 3, 4), (0, 1, 2), (3, 4)
BF16, F32, FP8, SCALE, FP4 = "BF16", "F32", "F8_E4M3", "F8_E8M0", "I8"
OUTSIDE = {
    "embed.weight": ((129280, 4096), BF16),
    "head.weight": ((129280, 4096), BF16),
    "norm.weight": ((4096,), BF16),
    "hc_head_base": ((4,), F32),
    "hc_head_fn": ((4, 16384), F32),
    "hc_head_scale": ((1,), F32),
    "mtp.0.attn.wq_a.weight": ((1024, 4096), FP8),
    "mtp.0.e_proj.weight": ((4096, 4096), FP8),
    "mtp.0.ffn.experts.0.w1.weight": ((2048, 2048), FP4),
    "mtp.0.hc_head_fn": ((4, 16384), F32),
}
LAYERS = {
    "attn.attn_sink": (EVERY, (64,), F32),
    "attn.kv_norm.weight": (EVERY, (512,), BF16),
    "attn.q_norm.weight": (EVERY, (1024,), BF16),
    "attn.wkv.scale": (EVERY, (4, 32), SCALE),
    "attn.wkv.weight": (EVERY, (512, 4096), FP8),
    "attn.wo_a.scale": (EVERY, (64, 32), SCALE),
    "attn.wo_a.weight": (EVERY, (8192, 4096), FP8),
    "attn.wo_b.scale": (EVERY, (32, 64), SCALE),
    "attn.wo_b.weight": (EVERY, (4096, 8192), FP8),
    "attn.wq_a.scale": (EVERY, (8, 32), SCALE),
    "attn.wq_a.weight": (EVERY, (1024, 4096), FP8),
    "attn.wq_b.scale": (EVERY, (256, 8), SCALE),
    "attn.wq_b.weight": (EVERY, (32768, 1024), FP8),
    "attn_norm.weight": (EVERY, (4096,), BF16),
    "ffn.gate.weight": (EVERY, (256, 4096), BF16),
    "ffn.gate.tid2eid": (BY_TOKEN, (129280, 6), "I64"),
    "ffn.gate.bias": (BY_ROUTER, (256,), F32),
    "ffn.shared_experts.w1.scale": (EVERY, (16, 32), SCALE),
    "ffn.shared_experts.w1.weight": (EVERY, (2048, 4096), FP8),
    "ffn.shared_experts.w2.scale": (EVERY, (32, 16), SCALE),
    "ffn.shared_experts.w2.weight": (EVERY, (4096, 2048), FP8),
    "ffn.shared_experts.w3.scale": (EVERY, (16, 32), SCALE),
    "ffn.shared_experts.w3.weight": (EVERY, (2048, 4096), FP8),
    "ffn_norm.weight": (EVERY, (4096,), BF16),
    "hc_attn_base": (EVERY, (24,), F32),
    "hc_attn_fn": (EVERY, (24, 16384), F32),
    "hc_attn_scale": (EVERY, (3,), F32),
    "hc_ffn_base": (EVERY, (24,), F32),
    "hc_ffn_fn": (EVERY, (24, 16384), F32),
    "hc_ffn_scale": (EVERY, (3,), F32),
    "attn.compressor.norm.weight": ((*SPARSE, *HEAVY), (512,), BF16),
    "attn.compressor.ape": (SPARSE, (4, 1024), F32),
    "attn.compressor.wgate.weight": (SPARSE, (1024, 4096), BF16),
    "attn.compressor.wkv.weight": (SPARSE, (1024, 4096), BF16),
    "attn.indexer.compressor.ape": (SPARSE, (4, 256), F32),
    "attn.indexer.compressor.norm.weight": (SPARSE, (128,), BF16),
    "attn.indexer.compressor.wgate.weight": (SPARSE, (256, 4096), BF16),
    "attn.indexer.compressor.wkv.weight": (SPARSE, (256, 4096), BF16),
    "attn.indexer.weights_proj.weight": (SPARSE, (64, 4096), BF16),
    "attn.indexer.wq_b.scale": (SPARSE, (64, 8), SCALE),
    "attn.indexer.wq_b.weight": (SPARSE, (8192, 1024), FP8),
}
HEAVY_LAYERS = {
    "attn.compressor.ape": ((128, 512), F32),
    "attn.compressor.wgate.weight": ((512, 4096), BF16),
    "attn.compressor.wkv.weight": ((512, 4096), BF16),
}
EXPERT = {
    "w1.scale": ((2048, 128), SCALE),
    "w1.weight": ((2048, 2048), FP4),
    "w2.scale": ((4096, 64), SCALE),
    "w2.weight": ((4096, 1024), FP4),
    "w3.scale": ((2048, 128), SCALE),
    "w3.weight": ((2048, 2048), FP4),
}


def published_tensors() -> dict[str, tuple[tuple[int, ...], str]]:
    """Those of the first five layers, with all experts, and what is around them."""
    tensors = dict(OUTSIDE)
    for name, (layers, shape, dtype) in LAYERS.items():
        tensors |= {f"layers.{layer}.{name}": (shape, dtype) for layer in layers}
    tensors |= {f"layers.{layer}.{name}": found for layer in HEAVY for name, found in HEAVY_LAYERS.items()}
    for name, found in EXPERT.items():
        tensors |= {f"layers.{layer}.ffn.experts.{index}.{name}": found for layer in EVERY for index in range(256)}
    return tensors
