"""What a family is: the surface that the siblings of this room share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family by the `model_type` and the class that config.json names.

    `absent` is what transformers assumes for keys that are left out. `layers` puts together so many layers, from
    settings without such gaps. `follows` are those of attention_bias, mlp_bias and layer_types that the family takes
    from config.json; what these ask of another one is refused.
    """

    name: str
    architecture: str
    absent: Mapping[str, object]
    follows: frozenset[str] = frozenset()
    layers: Callable[[JsonObject, int], tuple[Layer, ...]]
