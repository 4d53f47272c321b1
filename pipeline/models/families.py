"""Which tensors each group holds, as data. The names are those that every supported family uses on disk."""

from dataclasses import dataclass

from pipeline.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its short name in the code, its name in the checkpoint, and the shape it must have.

    Where it may lie under one of several names, `names` has them all, and the first that is there counts.
    """

    short: str
    name: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()


def group_specs(config: ModelConfig) -> dict[tuple[int, str], tuple[TensorSpec, ...]]:
    """The tensors of every group: (layer, "attn") and (layer, "ffn") in compute order, then the head, then the rows.

    (layers, "head") holds the final norm and the output matrix, which is the embedding itself where it is tied and no
    output matrix is stored: one that is stored was trained apart, or is the same and costs nothing.
    (-1, "embed") stands last because it is never streamed: a pass fetches the rows that it needs.
    """
    groups: dict[tuple[int, str], tuple[TensorSpec, ...]] = {}
    for layer in range(config.layers):
        groups[layer, "attn"] = _attention_specs(config, f"model.layers.{layer}")
        groups[layer, "ffn"] = _ffn_specs(config, f"model.layers.{layer}")
    embedding, output = "model.embed_tokens.weight", "lm_head.weight"
    tied = config.tied_embeddings
    matrix = (config.vocabulary_size, config.hidden_size)
    groups[config.layers, "head"] = (
        TensorSpec("norm", "model.norm.weight", (config.hidden_size,)),
        TensorSpec("output", embedding if tied else output, matrix, (output, embedding) if tied else ()),
    )
    groups[-1, "embed"] = (TensorSpec("embed", embedding, matrix, (embedding, output) if tied else ()),)
    return groups


def _attention_specs(config: ModelConfig, layer: str) -> tuple[TensorSpec, ...]:
    hidden_size, head_dim = config.hidden_size, config.head_dim
    rows = {"q": config.heads * head_dim, "k": config.kv_heads * head_dim, "v": config.kv_heads * head_dim}
    attention = f"{layer}.self_attn"
    specs = [TensorSpec("norm", f"{layer}.input_layernorm.weight", (hidden_size,))]
    specs += [TensorSpec(short, f"{attention}.{short}_proj.weight", (rows[short], hidden_size)) for short in rows]
    specs += [TensorSpec("o", f"{attention}.o_proj.weight", (hidden_size, config.heads * head_dim))]
    if config.qkv_bias:
        specs += [TensorSpec(f"{short}_bias", f"{attention}.{short}_proj.bias", (rows[short],)) for short in rows]
    if config.qk_norm:
        specs += [TensorSpec(f"{short}_norm", f"{attention}.{short}_norm.weight", (head_dim,)) for short in ("q", "k")]
    return tuple(specs)


def _ffn_specs(config: ModelConfig, layer: str) -> tuple[TensorSpec, ...]:
    hidden_size, ffn_size = config.hidden_size, config.ffn_size
    return (
        TensorSpec("norm", f"{layer}.post_attention_layernorm.weight", (hidden_size,)),
        TensorSpec("gate", f"{layer}.mlp.gate_proj.weight", (ffn_size, hidden_size)),
        TensorSpec("up", f"{layer}.mlp.up_proj.weight", (ffn_size, hidden_size)),
        TensorSpec("down", f"{layer}.mlp.down_proj.weight", (hidden_size, ffn_size)),
    )
