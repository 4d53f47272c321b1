"""Values from the text of the command line, by the types that settings and arguments have in Python."""

import argparse
import contextlib
import dataclasses
import enum
import importlib
import os
import sys
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from pipeline.errors import ConfigError, shown

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def from_text(hint: Any, text: str) -> Any:
    """Return the value of type `hint` that a text stands for; the text itself where it stands for none."""
    kinds = kinds_of(hint)
    word = text.strip().lower()
    if type(None) in kinds and word == "none":
        return None
    if bool in kinds and word in WORDS:
        return WORDS[word]
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(text)
    for kind in kinds:
        if get_origin(kind) is tuple:
            inside = get_args(kind)
            if ... in inside:
                return [from_text(inside[0], part) for part in text.split(",")]
            parts = text.split(":")
            return text if len(parts) != len(inside) else [from_text(*one) for one in zip(inside, parts, strict=True)]
    return text


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a value may have."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def stands_for(hint: Any, value: Any) -> bool:
    """Return whether `from_text` found a value."""
    return not isinstance(value, str) or str in kinds_of(hint)


def as_code(value: Any) -> str:
    """Python that makes the value; of an object that is no plain data, a new one of its class."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {as_code(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(as_code, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        defaults = {field.name: field.default for field in dataclasses.fields(value)}
        arguments = [f"{name}={as_code(one)}" for name, one in parts.items() if one != defaults[name]]
        return f"{type(value).__qualname__}({', '.join(arguments)})"
    if isinstance(value, str | int | float | None):
        return repr(value)
    return f"{type(value).__qualname__}()"


def option_of(name: str) -> str:
    """The option whose value the parser stores under this name."""
    return f"--{name.replace('_', '-')}"


def at_least_one(options: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError for an option that is given and below 1."""
    for name in names:
        if (have := getattr(options, name)) is not None and have < 1:
            raise ConfigError(f"{option_of(name)}: need at least 1, have {have}")


def counts(option: str, text: str) -> list[int]:
    """Numbers with commas between them. Raises ConfigError, which names the option."""
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise ConfigError(f"{option}: need numbers from 1 on, such as 16 or 1,4,16,64; have {text!r}")
    return numbers


def policy_from_text(text: str) -> Any:
    """Return a policy's name as it is, or the object that MODULE:NAME stands for."""
    return load(text) if ":" in text else text


def load(text: str, *, made: bool = True) -> Any:
    """What MODULE:NAME stands for, in the working folder too; of a class, an instance where it is to be `made`.

    Raises ConfigError.
    """
    module, _, name = text.strip().partition(":")
    if not (module and name):
        raise ConfigError(f"need MODULE:NAME, as in my_module:MyClass, have {shown(text)}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
        return found() if made and isinstance(found, type) else found
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"{text}: cannot be loaded: {type(error).__name__}: {error}") from error
