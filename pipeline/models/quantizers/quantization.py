"""What is read of a quantised checkpoint's settings: the surface that the siblings of this room share."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.formats.dense import Dense
from pipeline.formats.matrix import Format
from pipeline.models.json_object import JsonObject
from pipeline.models.supported import QUANTIZED

HEAD_MODULE = "lm_head"
LINEAR, EMBEDDING = r"(?!model\.embed_tokens$)", r"model\.embed_tokens$"
"""Patterns of the modules that multiply, and of the table."""
Rule = tuple[re.Pattern[str], Format]


@dataclass(frozen=True, slots=True)
class Quantization:
    """Which matrices of a checkpoint have which format.

    `rules` are patterns of the names of modules, of which the first that matches counts; what none matches is not
    quantised. `activations` is what the writer computes activations in, "" where it leaves them as they are: here they
    always stay in the dtype that is computed in.
    """

    rules: tuple[Rule, ...] = ()
    activations: str = ""

    def format_of(self, name: str) -> Format:
        """The format of the matrix of this name, "model.layers.0.mlp.up_proj.weight"."""
        module = name.removesuffix(".weight")
        return next((found for pattern, found in self.rules if pattern.match(module)), Dense())


def refused(settings: JsonObject, key: str) -> ConfigError:
    """The refusal of what `key` asks for."""
    need = f"weights that are stored as one of these: {QUANTIZED}"
    return settings.error(key, need, settings.get(key), "use another checkpoint")


def all_but(settings: JsonObject, key: str, skipped: Iterable[str], found: Format) -> tuple[Rule, ...]:
    """All linear modules but those that are `skipped`, as transformers reads such a list under `key`.

    An item is a pattern of the beginning of a name, up to the end of a part of it, or is its end.
    """
    patterns = [rf"(?:{item})(?:(?<=\.)|(?=\.|$))|.*{re.escape(item)}$" for item in skipped]
    return (
        (re.compile(EMBEDDING), Dense()),
        *((compiled(settings, key, pattern), Dense()) for pattern in patterns),
        (re.compile(LINEAR), found),
    )


def compiled(settings: JsonObject, key: str, pattern: str) -> re.Pattern[str]:
    """A pattern that the settings hold under `key`. Raises ConfigError for what is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise settings.error(key, f"patterns of names ({error})", pattern) from error


def group_columns(settings: JsonObject, key: str = "group_size", absent: int | None = None) -> int | None:
    """How many columns share a scale; None where -1 says that all of a row do."""
    if settings.get(key) is None and absent is not None:
        return absent
    return None if settings.get(key) == -1 else settings.count(key)
