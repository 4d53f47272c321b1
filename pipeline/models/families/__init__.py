"""The families of models that are read, a file for each: what config.json leaves out, and what layers are made of."""

from pipeline.models.families import (
    llama,
    ministral,
    mistral,
    mistral3,
    qwen2,
    qwen3,
    smollm3,
)

FAMILIES = {
    one.name: one
    for one in (
        llama.FAMILY,
        ministral.FAMILY,
        mistral.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
        smollm3.FAMILY,
    )
}
WRAPPERS = {one.name: one for one in (mistral3.WRAPPER,)}
