"""The settings of `Config` on the command line: NAME=VALUE, and the table of them below the help."""

import dataclasses
import functools
import re
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.config import Config
from pipeline.engine.settings import EngineSettings
from pipeline.errors import ConfigError, unknown_name
from pipeline.generation.parameters import SamplingArguments
from pipeline.tools.commands.values import from_text, load, policy_from_text, stands_for

NAME_WIDTH, LEAST_WIDTH = 28, 60


def with_setting(settings: Mapping[str, Any], assignment: str, own: Collection[str]) -> dict[str, Any]:
    """The settings, and NAME=VALUE, or MAPPING.ACTOR=VALUE; `own` are those that the command sets itself.

    Raises ConfigError for what is no setting, may not be set, or has a value of another type.
    """
    name, equals, text = assignment.partition("=")
    name, _, actor = name.strip().replace("-", "_").partition(".")
    hints = _hints()
    if not equals:
        raise ConfigError(f"need NAME=VALUE, have {assignment!r}")
    if name in SamplingArguments.__annotations__:
        option = name.replace("_", "-")
        raise ConfigError(f"{name}: is an argument of a call, not a setting; `penstock run` takes it as --{option}")
    if name not in hints:
        raise ConfigError(unknown_name("setting", name, list(hints)))
    if name in own:
        raise ConfigError(f"{name}: this command sets it itself; leave it out")
    hint = hints[name]
    if get_origin(hint) is Mapping:
        hint = get_args(hint)[1]
        if not actor:
            raise ConfigError(f"{name}: name the actor too, as in {name}.disk_reader={_form(hint)}")
        return {**settings, name: {**settings.get(name, {}), actor: _value(name, hint, text, actor)}}
    if actor:
        raise ConfigError(f"{name}: is one value, have {name}.{actor}")
    return {**settings, name: _value(name, hint, text)}


def _value(name: str, hint: Any, text: str, actor: str | None = None) -> Any:
    if get_origin(hint) is Sequence:
        return [load(one, made=False) for one in text.split(",")]  # each device makes its own
    if name == "policy":
        return policy_from_text(text)
    value = from_text(hint, text)
    if not stands_for(hint, value):
        Config.from_arguments({name: {actor: value} if actor else value})  # says what is needed
    return value


def settings_table(own: Collection[str], defaults: Mapping[str, Any]) -> str:
    """A line or two for each setting: its name as messages call it, what the command starts from, and what it is."""
    width = max(shutil.get_terminal_size().columns - 2, LEAST_WIDTH)
    lines = ["settings for --set, with their defaults (none: left to the plan or a measurement, or not used):"]
    sentences = described()
    for field in dataclasses.fields(Config):
        hint = _hints()[field.name]
        if field.name in own:
            continue
        if get_origin(hint) is Mapping:
            name = f"{field.name}.ACTOR={_form(get_args(hint)[1])}"
        else:
            name = f"{field.name}={_as_text(defaults.get(field.name, field.default))}"
        text = textwrap.wrap(sentences.get(field.name, ""), width - NAME_WIDTH) or [""]
        lines.append(f"  {name:{NAME_WIDTH - 3}} {text[0]}".rstrip())
        lines += [" " * NAME_WIDTH + line for line in text[1:]]
    if own:
        indent = "  "
        said = f"this command sets {', '.join(own)} itself"
        lines += textwrap.wrap(said, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def described() -> dict[str, str]:
    """The first sentence on each setting in the docstrings of `Config`; of nothing, where Python leaves them out."""
    sentences: dict[str, str] = {}
    docs = "".join((kind.__doc__ or "").partition("Attributes:")[2] for kind in (EngineSettings, Config))
    entries = re.split(r"\n        (?=[a-z_]+: )", docs)
    for entry in entries[1:]:
        name, _, text = " ".join(entry.split()).partition(": ")
        sentences[name] = re.split(r"[.;](?: |$)", text)[0]
    return sentences


def plain(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings. Raises ConfigError for objects, which no other process can be given."""
    for name, value in settings.items():
        if name.startswith("insert") or not isinstance(value, int | str | Mapping | None):
            raise ConfigError(f"{name}: is an object, which the processes that this command starts cannot be given")
    return settings


def _as_text(value: Any) -> str:
    return {True: "yes", False: "no", None: "none"}[value] if isinstance(value, bool | None) else str(value)


def _form(hint: Any) -> str:
    return "MODULE:CLASS" if get_origin(hint) is Sequence else "N"


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Config)
