"""Typed look-ups in a JSON file that another program wrote. Every refusal names the file, the key, need and have."""

import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from pipeline.errors import ConfigError
from pipeline.system.small_files import CONFIG_LIMIT_BYTES, read_json_file

MAX_COUNT = 2**31 - 1


class JsonObject:
    """One JSON object, `values`, and the path that errors call it by.

    A null counts as absent, save where `optional_` says so.
    """

    def __init__(self, path: str, values: Mapping[str, object], absent: Mapping[str, object] | None = None) -> None:
        self._path = path
        self.values = {**(absent or {}), **values}

    @classmethod
    def read(cls, path: Path) -> "JsonObject":
        """The object in the file `path`. Raises `CheckpointError` where there is none."""
        return cls(str(path), read_json_file(path, CONFIG_LIMIT_BYTES))

    def with_absent(self, absent: Mapping[str, object]) -> "JsonObject":
        """The same settings, where `absent` speaks for the keys that the file leaves out.

        It speaks for objects and lists that are null, too; numbers and names may mean something else by that.
        """
        void = {key for key, value in absent.items() if isinstance(value, dict | list) and self.get(key) is None}
        return JsonObject(self._path, {key: value for key, value in self.values.items() if key not in void}, absent)

    def replaced(self, key: str, value: object) -> "JsonObject":
        """The same settings with another value."""
        return JsonObject(self._path, {**self.values, key: value})

    def section(self, key: str) -> "JsonObject":
        """The object under `key`; an empty one where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "a JSON object", value)
        return JsonObject(f"{self._path}: {key}", value or {})

    def sections(self, key: str) -> dict[str, "JsonObject"]:
        """The objects in the object under `key`, by name; none where there is none."""
        within = self.section(key)
        return {name: within.section(name) for name in within.values}

    def __bool__(self) -> bool:
        return bool(self.values)

    def get(self, key: str) -> object:
        """The value as it stands in the file, None where it is null or absent."""
        return self.values.get(key)

    def first(self, *keys: str) -> str:
        """The first of these keys that has a value, else the first of all: writers give the same thing many names."""
        return next((key for key in keys if self.get(key) is not None), keys[0])

    def count(self, key: str, at_most: int = MAX_COUNT) -> int:
        """A whole number from 1."""
        return self._whole(key, 1, at_most)

    def optional_count(self, key: str) -> int | None:
        """A whole number from 1, or None where the key is null or absent."""
        return None if self.get(key) is None else self.count(key)

    def index(self, key: str, default: int | None = None) -> int:
        """A whole number from 0."""
        return self._whole(key, 0, MAX_COUNT, default)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = default if self.get(key) is None else self.number(key)
        if value is None or value <= 0:
            raise self.error(key, "a number above 0", value)
        return float(value)

    def optional_positive(self, key: str) -> float | None:
        """The same, or None where the key is null or absent."""
        return None if self.get(key) is None else self.positive(key)

    def positives(self, key: str, count: int) -> tuple[float, ...]:
        """So many finite numbers above 0."""
        value = self.get(key)
        items = value if isinstance(value, list) and len(value) == count else [None]
        if not all(_is_number(item) and item > 0 for item in items):
            have = f"{len(value)}: {_show(value)}" if isinstance(value, list) else value
            raise self.error(key, f"{count} numbers above 0", have)
        return tuple(map(float, items))

    def number(self, key: str) -> float | int:
        """A finite number."""
        value = self.get(key)
        if not _is_number(value):
            raise self.error(key, "a finite number", value)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; an empty one where there is none."""
        value = [] if self.get(key) is None else self.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "a list of strings", value)
        return tuple(value)

    def counts(self, key: str, count: int) -> tuple[int, ...]:
        """So many whole numbers from 1."""
        value = self.get(key)
        items = value if isinstance(value, list) and len(value) == count else [None]
        if not all(_is_whole(item, 1, MAX_COUNT) for item in items):
            raise self.error(key, f"{count} whole numbers from 1 to {MAX_COUNT}", value)
        return tuple(items)

    def indices(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers from 0; an empty one where there is none."""
        value = [] if self.get(key) is None else self.get(key)
        if not isinstance(value, list) or not all(_is_whole(item, 0, MAX_COUNT) for item in value):
            raise self.error(key, "a list of whole numbers from 0", value)
        return tuple(value)

    def token_ids(self, key: str, vocabulary_size: int) -> tuple[int, ...]:
        """One token id, a list of them, or none, without those outside the vocabulary: such a token never comes."""
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise self.error(key, "token ids", value)
        return tuple(one for one in ids if isinstance(one, int) and 0 <= one < vocabulary_size)

    def error(self, key: str, need: str, have: object, advice: str = "correct the file") -> ConfigError:
        """The error that says that `key` is not what is needed."""
        return ConfigError(f"{self._path}: {key}: need {need}; have {_show(have)}; {advice}")

    def _whole(self, key: str, at_least: int, at_most: int, default: int | None = None) -> int:
        value = default if self.get(key) is None else self.get(key)
        if not _is_whole(value, at_least, at_most):
            raise self.error(key, f"a whole number from {at_least} to {at_most}", value)
        return value


def _is_whole(value: object, at_least: int, at_most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= at_most


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _show(value: object) -> str:
    return "nothing" if value is None else reprlib.repr(value)
