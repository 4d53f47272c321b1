"""Jinja2 as chat templates expect it: the settings, functions and tags that transformers gives them, and limits.

A template is a program that came with a checkpoint. Its sandbox lets it reach no file and no attribute that Python
keeps for itself; here it also has no more than so many steps, since a thread cannot be stopped.
"""

import datetime
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from pipeline.system.threads import give_way

__all__ = ["TemplateError", "TemplateSyntaxError", "TooMuchError", "rendered"]

MOST_STEPS = 2_000_000
"""Turns of loops and calls of one rendering: a few seconds. A long chat with tools takes 20 for each message."""
STEPS_AT_ONCE = 1 << 12
MOST_FACTOR_BITS = 1 << 16
MOST_REPEATED = 1 << 20
COUNTED = "counted"


class TooMuchError(TemplateError):
    """A template takes more steps, or makes more text, than one may."""


class _Steps:
    def __init__(self) -> None:
        self.taken = 0

    def step(self) -> None:
        self.taken += 1
        if self.taken > MOST_STEPS:
            raise TooMuchError(f"it takes more than {MOST_STEPS} steps")
        if self.taken % STEPS_AT_ONCE == 0:
            give_way()


_STEPS: "ContextVar[_Steps]" = ContextVar("steps")


def rendered(source: str, variables: Mapping[str, Any], most_characters: int) -> str:
    """Return the text that a template makes of the variables.

    Raises TemplateSyntaxError for what is none, TooMuchError, and whatever else a template can raise.
    """
    template = _compiled(source)
    token = _STEPS.set(_Steps())
    try:
        pieces, characters = [], 0
        for piece in template.generate(variables):
            pieces.append(piece)
            characters += len(piece)
            if characters > most_characters:
                raise TooMuchError(f"it makes a text of more than {most_characters} characters")
        return "".join(pieces)
    finally:
        _STEPS.reset(token)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts turns of loops and calls, and lets no product hold the interpreter lock for long."""

    intercepted_binops = frozenset({"*", "**"})

    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        """Jinja's own hook between a parsed template and its Python code."""
        for loop in source.find_all(nodes.For):
            where = {"lineno": loop.lineno, "environment": self}
            loop.iter = nodes.Filter(loop.iter, COUNTED, [], [], None, None, **where)
        return super()._generate(source, *arguments, **named)

    def call(self, context: Context, function: Any, *arguments: Any, **named: Any) -> Any:
        _STEPS.get().step()
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MOST_FACTOR_BITS:
                raise TooMuchError("it computes a number that is too large")
        elif operator == "*" and _repeated(left, right) > MOST_REPEATED:
            raise TooMuchError(f"it repeats a text to more than {MOST_REPEATED} characters")
        return super().call_binop(context, operator, left, right)


def _repeated(left: Any, right: Any) -> int:
    what, times = (right, left) if isinstance(left, int) else (left, right)
    return len(what) * times if isinstance(what, str | list | tuple) and isinstance(times, int) else 0


class _Generation(Extension):
    """`{% generation %}` marks what the model itself has said, for training; here its body is just rendered.

    As in transformers the body is a scope of its own: what it sets is forgotten behind it.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _Dicts:
    """`dict(...)` and `dict.fromkeys(...)`, and nothing else that the class of dicts has."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _PlainNamespace(Namespace):
    """A namespace that has no name with an underscore before it."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, given = arguments[0], dict(*arguments[1:], **named)
        for name in given:
            _refuse_private(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no name with an underscore before it, as {name!r}")


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters |= {"tojson": _to_json, COUNTED: _counted}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dicts(),
        "namespace": _PlainNamespace,
    }
    return environment


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    steps = _STEPS.get()
    for item in items:
        steps.step()
        yield item


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is: Jinja's own filter would write signs of HTML as escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
