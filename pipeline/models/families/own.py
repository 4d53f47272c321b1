"""Families that other packages bring: an entry point of the group `penstock.families`, by the name of a model_type."""

import reprlib
from importlib.metadata import entry_points

from pipeline.errors import ConfigError
from pipeline.models.families.family import Family, Wrapper
from pipeline.models.json_object import JsonObject
from pipeline.models.layers import Layer

GROUP = "penstock.families"


def own_family(name: str) -> Family | Wrapper | None:
    """The family of that name, None where no package brings it.

    Raises ConfigError where several do, where it cannot be loaded, and where it is no family of that name.
    """
    found = [*entry_points(group=GROUP, name=name)]
    if not found:
        return None
    what = f"entry point {name!r} of {GROUP}"
    if len(found) > 1:
        raise ConfigError(f"{what}: need one, have {', '.join(one.value for one in found)}; remove a package")
    try:
        family = found[0].load()
    except Exception as error:
        raise ConfigError(f"{what}: {found[0].value} cannot be loaded: {error!r}") from error
    if not isinstance(family, Family | Wrapper) or family.name != name:
        have = getattr(family, "name", type(family).__name__)
        raise ConfigError(f"{what}: need a Family or Wrapper whose name is {name!r}, have {have!r} as {found[0].value}")
    if isinstance(family, Wrapper) and not family.texts:
        raise ConfigError(f"{what}: need a Wrapper with the names of families as texts, have none")
    return family


def made_layers(family: Family, settings: JsonObject, count: int) -> tuple[Layer, ...]:
    """So many layers, as the family puts them together. Raises ConfigError where it fails, or makes something else."""
    what = f"family {family.name!r}: layers"
    try:
        layers = tuple(family.layers(settings, count))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} failed: {error!r}") from error
    if len(layers) != count or not all(isinstance(one, Layer) for one in layers):
        raise ConfigError(f"{what}: need {count} of Layer, have {reprlib.repr(layers)}")
    return layers
