"""What a value of an argument is, whichever library has made it, and whether it is of a kind that is needed."""

from collections.abc import Collection, Sequence, Set
from itertools import islice
from typing import Any, TypeGuard

LARGEST_ID = 2**31 - 1
MOST_SAMPLES = 16
MOST_PRIORITY = 2**31 - 1
LONGEST_SCOPE = 256
MOST_IDS = 1 << 18
"""Ids in one argument: more than any vocabulary has."""


def plain(value: Any) -> Any:
    """What NumPy or torch have made as Python has it, and what is like a list as a tuple."""
    if isinstance(value, int | str):  # almost always
        return value
    value = as_python(value)
    return tuple(islice(value, MOST_IDS + 1)) if is_list(value) else value


def as_python(value: Any) -> Any:
    """What NumPy or torch have made as Python has it, but for what is too long to be looked through."""
    too_long = getattr(value, "ndim", 1) and hasattr(value, "__len__") and len(value) > MOST_IDS
    return value.tolist() if hasattr(value, "tolist") and not too_long else value


def is_list(value: object) -> TypeGuard[Collection[Any]]:
    """Whether it is a sequence or a set of things, and not one that is too long to be looked through."""
    if isinstance(value, list | tuple):
        return True
    is_text = isinstance(value, str | bytes | bytearray)
    return isinstance(value, Sequence | Set) and not is_text and len(value) <= MOST_IDS


def is_whole(value: object, low: int, high: int) -> bool:
    """Whether it is a whole number in a range; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def are_ids(ids: object, most: int) -> bool:
    """Whether it is a tuple of token ids; in a few steps, as there may be as many as a vocabulary has."""
    if not isinstance(ids, tuple) or len(ids) > most or not set(map(type, ids)) <= {int}:
        return False
    return not ids or (min(ids) >= 0 and max(ids) <= LARGEST_ID)


def is_number(value: object, low: float, high: float) -> bool:
    """Whether it is a number in a range, which not-a-number is not; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
