"""The families of models that are read, a file for each: what config.json leaves out, and what layers are made of."""

from pipeline.models.families import (
    granite,
    llama,
    ministral,
    ministral3,
    mistral,
    mistral3,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)

FAMILIES = {
    one.name: one
    for one in (
        granite.FAMILY,
        llama.FAMILY,
        ministral.FAMILY,
        ministral3.FAMILY,
        mistral.FAMILY,
        phi3.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
        smollm3.FAMILY,
    )
}
WRAPPERS = {one.name: one for one in (mistral3.WRAPPER,)}
