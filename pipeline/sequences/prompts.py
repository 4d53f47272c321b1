"""What a caller gives as a prompt: text, or token ids in the order in which the model reads them."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Set, Sized, ValuesView
from itertools import islice
from typing import Any, Protocol, SupportsIndex

from pipeline.errors import RequestError, shown

SLICE_TOKENS = 1 << 14
"""Ids are taken and checked so many at a time: about a millisecond of the event loop."""
ONE_PROMPT = "a call takes one text, or the token ids of one; call generate once for each prompt"


class TokenIds(Protocol):
    """A list, tuple, array or tensor of token ids, or another sequence of whole numbers; but not bytes.

    Bytes are a `Sequence[int]` to type checkers; what they are not is a container that any object may be looked for in.
    """

    def __contains__(self, value: object, /) -> bool: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def __iter__(self) -> Iterator[SupportsIndex]: ...

    def __len__(self) -> int: ...


Prompt = str | TokenIds | Iterator[SupportsIndex]
"""A text, or the token ids of one."""


def id_slices(prompt: object, vocabulary_size: int) -> Iterator[list[int]]:
    """The token ids of a prompt, a slice at a time.

    Takes lists, tuples, ranges, generators, NumPy arrays and tensors of whole numbers. Raises RequestError for a type
    that has no order, or whose numbers are bytes of a text, and for what is no id of the vocabulary.
    """
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise _refused(prompt, "its numbers are bytes of a text, not token ids; give prompt.decode()")
    if isinstance(prompt, Mapping | ValuesView):
        raise _refused(prompt, "give a list of ids: of what a tokenizer returns, its 'input_ids'")
    if isinstance(prompt, Set):
        raise _refused(prompt, "it has no order; give a list of ids")
    if not isinstance(prompt, Iterable):
        raise _refused(prompt)
    begin = 0
    for part in _parts(prompt):
        yield _checked(part, begin, vocabulary_size)
        begin += len(part)


def known_length(prompt: object) -> int:
    """How many ids a prompt has, 0 where only taking them tells."""
    try:
        return len(prompt) if isinstance(prompt, Sized) else 0
    except TypeError:  # arrays and tensors without a dimension
        raise _refused(prompt, "it is one number; give a list") from None


def _parts(prompt: Iterable[Any]) -> Iterator[list[Any]]:
    if hasattr(prompt, "tolist"):  # an array or a tensor, whose own numbers are no `int`
        for begin in range(0, known_length(prompt), SLICE_TOKENS):
            yield prompt[begin : begin + SLICE_TOKENS].tolist()  # type: ignore[index]
        return
    numbers = iter(prompt)
    while part := list(islice(numbers, SLICE_TOKENS)):
        yield part


def _checked(part: list[Any], begin: int, vocabulary_size: int) -> list[int]:
    if set(map(type, part)) == {int} and min(part) >= 0 and max(part) < vocabulary_size:
        return part
    return [_token_id(value, begin + index, vocabulary_size) for index, value in enumerate(part)]


def _token_id(value: object, position: int, vocabulary_size: int) -> int:
    try:
        token_id = operator.index(value)  # type: ignore[arg-type]
        if not isinstance(value, bool) and 0 <= token_id < vocabulary_size:
            return token_id
    except TypeError:
        pass
    more = f": {ONE_PROMPT}" if isinstance(value, str | bytes | Iterable) else ""
    raise RequestError(
        f"prompt: need token ids from 0 to {vocabulary_size - 1}, have {shown(value)} at {position}{more}"
    )


def _refused(prompt: object, why: str = "") -> RequestError:
    return RequestError(f"prompt: need text or token ids, have {type(prompt).__name__}{why and ': ' + why}")
