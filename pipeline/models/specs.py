"""Which tensors each group holds, as data. The names are those that every supported family uses on disk."""

from actors.core.message import GroupKey
from pipeline.formats.parts import EMBED, EMBED_KEY, HEAD, TABLE, expert
from pipeline.formats.tensors import TensorSpec
from pipeline.models.feed_forwards import Experts
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
    outside, tied = config.outside, config.tied_embeddings
    embedding = tuple(f"{config.prefix}{name}.weight" for name in outside.embedding)
    output = f"{outside.output}.weight"
    matrix = (config.vocabulary_size, config.hidden_size)
    groups[config.layers, HEAD] = (
        TensorSpec("norm", f"{config.prefix}norm.weight", (config.hidden_size,)),
        *(() if outside.streams is None else outside.streams.of_head(f"{config.prefix}hc_head", config.hidden_size)),
        TensorSpec("output", embedding[0] if tied else output, matrix, (output, *embedding) if tied else ()),
    )
    names = (*embedding, output) if tied else embedding if len(embedding) > 1 else ()
    groups[EMBED_KEY] = (TensorSpec(EMBED, embedding[0], matrix, names),)
    return groups


def expert_specs(config: ModelConfig) -> dict[GroupKey, tuple[TensorSpec, ...]]:
    """The tensors of every expert, which are groups beside those: layer by layer, in order of their index.

    And those that say which experts a token uses, where that follows from its id: they never move.
    """
    groups: dict[GroupKey, tuple[TensorSpec, ...]] = {}
    for index, layer in enumerate(config.layer_kinds):
        name = f"{config.prefix}layers.{index}"
        if isinstance(kind := layer.feed_forward, Experts) and kind.routing.by_token:
            groups[index, TABLE] = (kind.table_tensor(name, config.vocabulary_size),)
        groups |= {(index, expert(number)): specs for number, specs in enumerate(layer.expert_specs(name))}
    return groups
