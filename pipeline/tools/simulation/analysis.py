"""The figures of the analysis that the policies come from, of a 70B model: its layers, and what one of them takes."""

LAYERS = 80
MILLISECONDS = {"attn_ms": 80.0, "ffn_ms": 120.0, "attn_io_ms": 100.0, "ffn_io_ms": 100.0}
