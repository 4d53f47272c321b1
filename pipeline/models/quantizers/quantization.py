"""What is read of a quantised checkpoint's settings: the surface that the siblings of this room share."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import regex

from pipeline.errors import ConfigError, shown
from pipeline.formats.dense import Dense
from pipeline.formats.matrix import Format
from pipeline.formats.parts import NESTED_PREFIX, spellings
from pipeline.models.json_object import JsonObject
from pipeline.models.supported import QUANTIZED

HEAD_MODULE = "lm_head"
LINEAR, EMBEDDING = r"(?!(?:.*\.)?embed_tokens$|embed$)", r"(?:.*\.)?embed_tokens$|embed$"
"""Patterns of the modules that multiply, and of the table."""
CHOOSES = re.compile(
    r".*\.(gate|router|router\.proj|shared_expert_gate|indexer\.weights_proj|compressor\.(wkv|wgate))|head"
)
"""What chooses experts or positions, or says how much a shared one counts, is never quantised, whether or not a file
says so; nor is what DeepSeek-V4 compresses tokens with, and its head."""
PATTERN_SECONDS, MATCH_SECONDS = 5.0, 2e-5
"""All patterns of a file may take so long with all names, and so long more for each: usual ones take a tenth of that,
and some would take years."""
PATTERN_LENGTH, PATTERN_REPEATS = 10_000, 100
"""The most characters of a pattern, and the most that counted repetitions in it may make of one: each takes memory."""
COUNTED = re.compile(r"\{([0-9]*),?([0-9]*)\}")
NAME, DOT = re.compile(r"[\w.-]*"), re.compile(r"\.")


@dataclass(frozen=True, slots=True)
class Names:
    """A pattern of many names, of which a module has one; or begins with one up to the end of a part, or ends with it.

    A file may list hundreds, and each be asked for 100,000 modules.
    """

    names: frozenset[str]
    ends: tuple[str, ...] = ()

    def match(self, module: str) -> bool:
        """Whether the module is meant."""
        if module in self.names or module.endswith(self.ends):
            return True
        return bool(self.ends) and any(
            module[: dot.start()] in self.names or module[: dot.end()] in self.names for dot in DOT.finditer(module)
        )


Pattern: TypeAlias = re.Pattern[str] | regex.Pattern[str] | Names
"""Of `regex`, which can be stopped and takes ten times as long, where a file says more than names."""
Rule = tuple[Pattern, Format]


@dataclass(slots=True)
class Quantization:
    """Which matrices of a checkpoint have which format.

    `rules` are patterns of the names of modules, of which the first that matches counts; what none matches is not
    quantised. `activations` is what the writer computes activations in, "" where it leaves them as they are: here they
    always stay in the dtype that is computed in.
    """

    rules: tuple[Rule, ...] = ()
    activations: str = ""
    _left_seconds: float = field(default_factory=lambda: PATTERN_SECONDS, init=False, compare=False)

    def format_of(self, name: str) -> Format:
        """The format of the matrix of this name, "model.layers.0.mlp.up_proj.weight".

        Inside a model that sees, patterns may mean any of the spellings of a name. Raises ConfigError where they take
        too long.
        """
        module, started = name.removesuffix(".weight"), time.thread_time()
        if CHOOSES.fullmatch(module):
            return Dense()
        modules = spellings(module) if module.startswith((NESTED_PREFIX, HEAD_MODULE)) else (module,)
        rules = ((pattern, found, one) for pattern, found in self.rules for one in modules)
        found = next((found for pattern, found, one in rules if self._matches(pattern, one)), Dense())
        self._left_seconds -= time.thread_time() - started
        return found

    def _matches(self, pattern: Pattern, module: str) -> bool:
        if not isinstance(pattern, regex.Pattern):
            return bool(pattern.match(module))
        self._left_seconds += MATCH_SECONDS
        try:
            return pattern.match(module, timeout=max(0.0, self._left_seconds)) is not None
        except TimeoutError as error:
            raise ConfigError(
                f"quantization_config: need patterns of names that are matched in {PATTERN_SECONDS:g} s, have "
                f"{shown(pattern.pattern)}, which takes longer with {module!r}; write names in its place"
            ) from error


def refused(settings: JsonObject, key: str) -> ConfigError:
    """The refusal of what `key` asks for."""
    need = f"weights that are stored as one of these: {QUANTIZED}"
    return settings.error(key, need, settings.get(key), "use another checkpoint")


def all_but(settings: JsonObject, key: str, skipped: Sequence[str], found: Format) -> tuple[Rule, ...]:
    """All linear modules but those that are `skipped`, as transformers reads such a list under `key`.

    An item is a pattern of the beginning of a name, up to the end of a part of it, or is its end.
    """
    names = tuple(item for item in skipped if NAME.fullmatch(item))
    patterns = [rf"(?:{item})(?:(?<=\.)|(?=\.|$))|.*{re.escape(item)}$" for item in skipped if item not in names]
    return (
        (re.compile(EMBEDDING), Dense()),
        (Names(frozenset(names), names), Dense()),
        *((compiled(settings, key, pattern), Dense()) for pattern in patterns),
        (re.compile(LINEAR), found),
    )


def compiled(settings: JsonObject, key: str, pattern: str) -> regex.Pattern[str]:
    """A pattern that the settings hold under `key`. Raises ConfigError for what is none, or takes too much memory."""
    counts = [max(int(digits[:9] or 1) for digits in counted) for counted in COUNTED.findall(pattern)]
    if len(pattern) > PATTERN_LENGTH or re.search(r"\s", pattern) or math.prod(counts) > PATTERN_REPEATS:
        need = f"patterns of at most {PATTERN_LENGTH} characters, no spaces, and {PATTERN_REPEATS} counted repetitions"
        raise settings.error(key, need, pattern)
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise settings.error(key, f"patterns of names ({error})", pattern) from error


def group_columns(settings: JsonObject, key: str = "group_size", absent: int | None = None) -> int | None:
    """How many columns share a scale; None where -1 says that all of a row do."""
    if settings.get(key) is None and absent is not None:
        return absent
    return None if settings.get(key) == -1 else settings.count(key)
