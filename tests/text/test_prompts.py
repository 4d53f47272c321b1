"""What passes for token ids, and what is refused because it only looks like them."""

import array
import collections
import itertools
from collections.abc import Iterable

import numpy
import pytest
import tokenizers
import torch
import transformers

from pipeline.errors import RequestError
from pipeline.text.prompts import SLICE_TOKENS, id_slices

IDS = [5, 300, 77, 5]
CHAT = [{"content": "Hello", "role": "user"}]
ENCODING = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?")).encode("a")


def taken(prompt: object, vocabulary_size: int = 1000) -> list[int]:
    return [token_id for part in id_slices(prompt, vocabulary_size) for token_id in part]


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        iter,
        collections.deque,
        lambda ids: (token_id for token_id in ids),
        lambda ids: array.array("i", ids),
        numpy.array,
        lambda ids: list(numpy.array(ids)),
        torch.tensor,
        lambda ids: list(torch.tensor(ids)),
        lambda ids: torch.tensor([ids]),
        lambda ids: numpy.array([ids], dtype=numpy.uint16),
        lambda ids: numpy.array(ids, dtype=object),
        lambda ids: tuple(map(numpy.int32, ids)),
        lambda ids: transformers.BatchEncoding({"input_ids": ids})["input_ids"],
        lambda ids: transformers.BatchEncoding({"input_ids": [ids]}, tensor_type="pt")["input_ids"],
    ],
)
def test_anything_that_has_whole_numbers_in_order_is_a_prompt(kind: object) -> None:
    ids = taken(kind(IDS))  # type: ignore[operator]
    assert ids == IDS
    assert set(map(type, ids)) == {int}


def test_a_long_prompt_is_taken_slice_by_slice() -> None:
    for prompt in (range(3 * SLICE_TOKENS + 5), torch.arange(3 * SLICE_TOKENS + 5)):
        parts = list(id_slices(prompt, 10**6))
        assert [len(part) for part in parts] == [SLICE_TOKENS] * 3 + [5]
        assert list(itertools.chain(*parts)) == list(range(3 * SLICE_TOKENS + 5))


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (b"class", r"have bytes: its numbers are bytes of a text, not token ids; give prompt.decode\(\)"),
        (bytearray(b"class"), "have bytearray: its numbers are bytes"),
        (memoryview(b"class"), "have memoryview: its numbers are bytes"),
        ({5, 300}, "have set: it has no order; give a list of ids"),
        (frozenset({5}), "have frozenset: it has no order"),
        ({5: 1}.keys(), "have dict_keys: it has no order|have dict_keys: give a list"),
        ({5: 1}, "have dict: give a list of ids: of what a tokenizer returns, its 'input_ids'"),
        ({1: 5}.values(), "have dict_values: give a list of ids"),
        (collections.Counter([5]), "have Counter: give a list of ids"),
        (transformers.BatchEncoding({"input_ids": [5]}), "have BatchEncoding: .* its 'input_ids'"),
        (ENCODING, "have Encoding: give its `ids`"),
        (
            CHAT,
            r"have \{'content': .*\} at 0: chat messages become a text by the model's template: .*model\.chat\(",
        ),
        (CHAT[0], "have dict: chat messages become a text"),
        (["class", "def"], "have 'class' at 0: a call takes one text, or the token ids of one"),
        ([[1, 2], [3, 4]], r"have \[1, 2\] at 0: a call takes one text"),
        ([5, b"a"], "have b'a' at 1: a call takes one text"),
        (numpy.zeros((2, 3), dtype=int), r"have \[0, 0, 0\] at 0: a call takes one text"),
        (torch.zeros(2, 3, dtype=int), r"have \[0, 0, 0\] at 0: a call takes one text"),
        (torch.zeros(1, 1, 3, dtype=int), r"have \[\[0, 0, 0\]\] at 0: a call takes one text"),
        (torch.zeros(1, 3), "have 0.0 at 0$"),
        (torch.tensor(5), "have Tensor: it is one number; give a list"),
        (numpy.array(5), "have ndarray: it is one number"),
        (torch.empty(3, dtype=int, device="meta"), r"have Tensor: its numbers cannot be read \(NotImpl.*; give a list"),
        (torch.tensor([5]).to_sparse(), "have Tensor: its numbers cannot be read"),
        (numpy.ma.array([5, 6], mask=[False, True]), "have None at 1"),
        (numpy.array([1.0]), "have 1.0 at 0"),
        (torch.tensor([True]), "have True at 0"),
        ([numpy.bool_(True)], "have .*True.* at 0"),
        ([5, True], "have True at 1"),
        ([5, 1000], "token ids from 0 to 999, have 1000 at 1"),
        ([5, -1], "have -1 at 1"),
        ([5, 10**5000], "have a int at 1"),
        ([None], "have None at 0"),
        (5, "text or token ids, have int$"),
        (None, "have NoneType$"),
        (object(), "have object$"),
        ([*range(999), *[3] * SLICE_TOKENS, -7], f"have -7 at {SLICE_TOKENS + 999}"),
    ],
)
def test_what_only_looks_like_token_ids_is_refused(prompt: Iterable[object], says: str) -> None:
    with pytest.raises(RequestError, match=f"^prompt: need .*{says}"):
        taken(prompt)
