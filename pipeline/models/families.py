"""Which tensors each group holds, as data. The names are those that every supported family uses on disk."""

from collections.abc import Mapping

from actors.core.message import GroupKey
from pipeline.formats.parts import ATTN, EMBED, EMBED_KEY, FFN, HEAD
from pipeline.formats.tensors import TensorSpec
from pipeline.models.config import ModelConfig


def group_specs(config: ModelConfig) -> dict[GroupKey, tuple[TensorSpec, ...]]:
    """The tensors of every group: the parts of all layers in compute order, then the head, then the rows.

    The head holds the final norm and the output matrix, which is the embedding itself where it is tied and no
    output matrix is stored: one that is stored was trained apart, or is the same and costs nothing.
    The embedding stands last because it is never streamed: a pass fetches the rows that it needs.
    """
    groups: dict[GroupKey, tuple[TensorSpec, ...]] = {}
    for layer in range(config.layers):
        groups[layer, ATTN] = _attention_specs(config, f"model.layers.{layer}")
        groups[layer, FFN] = _ffn_specs(config, f"model.layers.{layer}")
    embedding, output = "model.embed_tokens.weight", "lm_head.weight"
    tied = config.tied_embeddings
    matrix = (config.vocabulary_size, config.hidden_size)
    groups[config.layers, HEAD] = (
        TensorSpec("norm", "model.norm.weight", (config.hidden_size,)),
        TensorSpec("output", embedding if tied else output, matrix, (output, embedding) if tied else ()),
    )
    groups[EMBED_KEY] = (TensorSpec(EMBED, embedding, matrix, (embedding, output) if tied else ()),)
    return groups


def _attention_specs(config: ModelConfig, layer: str) -> tuple[TensorSpec, ...]:
    hidden_size, head_dim, attention = config.hidden_size, config.head_dim, f"{layer}.self_attn"
    query_rows, kv_rows = config.heads * head_dim, config.kv_heads * head_dim
    shapes = {
        "q": (query_rows, hidden_size),
        "k": (kv_rows, hidden_size),
        "v": (kv_rows, hidden_size),
        "o": (hidden_size, query_rows),
    }
    specs = [TensorSpec("norm", f"{layer}.input_layernorm.weight", (hidden_size,))]
    specs += _projections(config, attention, shapes)
    if config.qk_norm:
        specs += [TensorSpec(f"{short}_norm", f"{attention}.{short}_norm.weight", (head_dim,)) for short in ("q", "k")]
    return tuple(specs)


def _ffn_specs(config: ModelConfig, layer: str) -> tuple[TensorSpec, ...]:
    hidden_size, ffn_size = config.hidden_size, config.ffn_size
    shapes = {"gate": (ffn_size, hidden_size), "up": (ffn_size, hidden_size), "down": (hidden_size, ffn_size)}
    norm = TensorSpec("norm", f"{layer}.post_attention_layernorm.weight", (hidden_size,))
    return (norm, *_projections(config, f"{layer}.mlp", shapes))


def _projections(config: ModelConfig, module: str, shapes: Mapping[str, tuple[int, int]]) -> list[TensorSpec]:
    """The matrices, then the biases of those that have one, an item for each row."""
    matrices = [TensorSpec(short, f"{module}.{short}_proj.weight", shape) for short, shape in shapes.items()]
    return matrices + [
        TensorSpec(f"{short}_bias", f"{module}.{short}_proj.bias", (rows,))
        for short, (rows, _) in shapes.items()
        if short in config.biases
    ]
