"""A caller gives as a prompt text, or token ids in the order in which the model reads them."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Set, Sized, ValuesView
from itertools import islice
from typing import Any, Protocol, SupportsIndex

from pipeline.errors import RequestError, shown

SLICE_TOKENS = 1 << 14
"""Ids are taken and checked so many at a time: about a millisecond of the event loop."""
ONE_PROMPT = "a call takes one text, or the token ids of one; call once for each of several"
CHAT = "chat messages become a text by the model's template: give them to model.chat(messages)"
OF_A_TOKENIZER = "give a list of ids: of what a tokenizer returns, its 'input_ids'"


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


def id_slices(prompt: object, vocabulary_size: int, what: str = "prompt") -> Iterator[list[int]]:
    """The token ids of a prompt, a slice at a time.

    Takes lists, tuples, ranges, generators, and NumPy arrays and tensors of the shapes [n] and [1, n], of whole
    numbers. Raises RequestError for a type that has no order, or whose numbers are bytes of a text, for what a
    tokenizer returns beside ids, and for what is no id of the vocabulary.
    """
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise _refused(what, prompt, "its numbers are bytes of a text, not token ids; give prompt.decode()")
    if isinstance(prompt, Mapping | ValuesView):
        chat = isinstance(prompt, Mapping) and "role" in prompt
        raise _refused(what, prompt, CHAT if chat else OF_A_TOKENIZER)
    if isinstance(prompt, Set):
        raise _refused(what, prompt, "it has no order; give a list of ids")
    if not isinstance(prompt, Iterable):  # those that have ids are Encodings of the tokenizers package
        raise _refused(what, prompt, "give its `ids`" if hasattr(prompt, "ids") else "")
    begin = 0
    for part in _parts(what, _without_batch(prompt)):
        if not (set(map(type, part)) == {int} and min(part) >= 0 and max(part) < vocabulary_size):
            part = [_token_id(what, value, begin + index, vocabulary_size) for index, value in enumerate(part)]
        yield part
        begin += len(part)


def known_length(prompt: object, what: str = "prompt") -> int:
    """How many ids a prompt has, 0 where only taking them tells."""
    try:
        return len(_without_batch(prompt)) if isinstance(prompt, Sized) else 0
    except TypeError:  # arrays and tensors without a dimension
        raise _refused(what, prompt, "it is one number; give a list") from None


def _without_batch(prompt: Any) -> Any:
    """The one row of an array or tensor of the shape [1, n]: tokenizers return it where they are asked for tensors."""
    return prompt[0] if getattr(prompt, "ndim", 1) == 2 and len(prompt) == 1 else prompt


def _parts(what: str, prompt: Iterable[Any]) -> Iterator[list[Any]]:
    if hasattr(prompt, "tolist"):  # an array or a tensor, whose own numbers are no `int`
        for begin in range(0, known_length(prompt, what), SLICE_TOKENS):
            try:
                part = prompt[begin : begin + SLICE_TOKENS].tolist()  # type: ignore[index]
            except Exception as error:  # sparse tensors, those without data, whatever else has a `tolist`
                why = f"its numbers cannot be read ({type(error).__name__}); give a list"
                raise _refused(what, prompt, why) from error
            yield part
        return
    numbers = iter(prompt)
    while part := list(islice(numbers, SLICE_TOKENS)):
        yield part


def _token_id(what: str, value: object, position: int, vocabulary_size: int) -> int:
    try:
        token_id = operator.index(value)  # type: ignore[arg-type]
        if not isinstance(value, bool) and 0 <= token_id < vocabulary_size:
            return token_id
    except TypeError:
        pass
    more = ""
    if isinstance(value, Iterable):
        more = f": {CHAT if isinstance(value, Mapping) and 'role' in value else ONE_PROMPT}"
    need = f"need token ids from 0 to {vocabulary_size - 1}"
    raise RequestError(f"{what}: {need}, have {shown(value)} at {position}{more}")


def _refused(what: str, prompt: object, why: str = "") -> RequestError:
    need = "text or token ids" if what == "prompt" else "token ids"
    return RequestError(f"{what}: need {need}, have {type(prompt).__name__}{why and ': ' + why}")
