"""Keyword arguments of a TypedDict as help() and notebooks see them, which know nothing of Unpack."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_type_hints

Function = TypeVar("Function", bound=Callable[..., Any])


def shows(*kinds: Any) -> Callable[[Function], Function]:
    """Name the keys of `**arguments: Unpack[SomeTypedDict]` in a signature, with the defaults of these dataclasses."""
    defaults = {
        one.name: one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        for kind in kinds
        for one in dataclasses.fields(kind)
    }

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        *explicit, unpacked = signature.parameters.values()
        keys = get_type_hints(get_args(unpacked.annotation)[0])
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=hint)
            for name, hint in keys.items()
        ]
        function.__signature__ = signature.replace(parameters=[*explicit, *named])  # type: ignore[attr-defined]
        return function

    return decorate
