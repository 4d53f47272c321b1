"""The families of models that are read, a file for each: what config.json leaves out, and what layers are made of."""

from pipeline.models.families import llama, mistral, qwen2, qwen3

FAMILIES = {one.name: one for one in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)}
