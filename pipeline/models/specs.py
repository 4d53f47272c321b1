"""Which tensors each group holds, as data. The names are those that every supported family uses on disk."""

from actors.core.message import GroupKey
from pipeline.formats.parts import EMBED, EMBED_KEY, HEAD, expert
from pipeline.formats.tensors import TensorSpec
from pipeline.models.model_config import ModelConfig


def group_specs(config: ModelConfig) -> dict[GroupKey, tuple[TensorSpec, ...]]:
    """The tensors of every group: the parts of all layers in compute order, then the head, then the rows.

    The head holds the final norm and the output matrix, which is the embedding itself where it is tied and no
    output matrix is stored: one that is stored was trained apart, or is the same and costs nothing.
    The embedding stands last because it is never streamed: a pass fetches the rows that it needs.
    """
    groups: dict[GroupKey, tuple[TensorSpec, ...]] = {}
    for index, layer in enumerate(config.layer_kinds):
        groups |= {(index, part): specs for part, specs in layer.specs(f"{config.prefix}layers.{index}").items()}
    embedding, output = f"{config.prefix}embed_tokens.weight", "lm_head.weight"
    tied = config.tied_embeddings
    matrix = (config.vocabulary_size, config.hidden_size)
    groups[config.layers, HEAD] = (
        TensorSpec("norm", f"{config.prefix}norm.weight", (config.hidden_size,)),
        TensorSpec("output", embedding if tied else output, matrix, (output, embedding) if tied else ()),
    )
    groups[EMBED_KEY] = (TensorSpec(EMBED, embedding, matrix, (embedding, output) if tied else ()),)
    return groups


def expert_specs(config: ModelConfig) -> dict[GroupKey, tuple[TensorSpec, ...]]:
    """The tensors of every expert, which are groups beside those: layer by layer, in order of their index."""
    return {
        (index, expert(number)): specs
        for index, layer in enumerate(config.layer_kinds)
        for number, specs in enumerate(layer.expert_specs(f"{config.prefix}layers.{index}"))
    }
