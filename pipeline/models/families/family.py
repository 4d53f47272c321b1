"""What a family is: the surface that the siblings of this room share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.formats.parts import TEXT_PREFIX
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer
from pipeline.models.outside import PLAIN, Outside


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family by the `model_type` and the class that config.json names.

    `absent` is what transformers assumes for keys that are left out. `layers` puts together so many layers, from
    settings without such gaps, and `outside` what is around them. `follows` are those of attention_bias, mlp_bias,
    layer_types and per_layer_config that the family takes from config.json; what these ask of another one is refused.
    `prefix` stands before the names of tensors.
    """

    name: str
    architecture: str
    absent: Mapping[str, object]
    follows: frozenset[str] = frozenset()
    layers: Callable[[JsonObject, int], tuple[Layer, ...]]
    outside: Callable[[JsonObject], Outside] = lambda settings: PLAIN
    prefix: str = TEXT_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A model that sees or hears, by the `model_type` and the class that config.json names.

    Its text model is described by `text_config`, which may be of one of the families `texts`, and is of the first where
    it names none. `tied` is what transformers assumes where config.json says nothing about tie_word_embeddings. With
    the keys in `ignored` a text model computes alone, but not in there.
    """

    name: str
    architecture: str
    texts: tuple[str, ...]
    tied: bool
    ignored: frozenset[str] = frozenset()
