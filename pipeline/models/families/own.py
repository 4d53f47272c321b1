"""Families that other packages bring: an entry point of the group `penstock.families`, by the name of a model_type."""

from importlib.metadata import entry_points

from pipeline.errors import ConfigError
from pipeline.models.families.family import Family, Wrapper

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
    return family
