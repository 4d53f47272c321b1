"""What `model.tokenizer` does, whatever files it was read from."""

import array
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from text import small_tokenizers as small
from text.test_tekken import save as save_tekken

from pipeline.errors import RequestError
from pipeline.text.tokenizer import ModelTokenizer, Tokenizer, load_tokenizer

SINGLE_BYTES = [bytes([value]) for value in range(256)]
BOS = {"added_tokens_decoder": {"256": {"content": "<s>", "special": True}}, "bos_token": "<s>", "add_bos_token": True}
KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gpt2": (lambda folder: small.save(small.gpt2(), folder), ""),
    "llama3": (lambda folder: small.save(small.llama3(), folder), "<|begin|>"),
    "llama2": (lambda folder: small.save(small.llama2(), folder), "<|begin|>"),
    "rank file": (lambda folder: small.save_rank_file(SINGLE_BYTES, folder, **BOS), "<s>"),
    "tekken": (lambda folder: save_tekken(folder, ["<unk>", "<s>", "</s>"]), "<s>"),
}
"""How the files are written, and the BOS token that is put before a text."""


@functools.cache
def loaded(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        KINDS[kind][0](Path(folder))
        return load_tokenizer(Path(folder), 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_it_encodes_counts_and_decodes_as_generate_does(kind: str) -> None:
    tokenizer: ModelTokenizer = loaded(kind)
    text, bos = "the cat and the hat", KINDS[kind][1]
    ids = tokenizer.encode(text)
    assert tokenizer.count(text) == len(ids)
    assert tokenizer.decode(ids) == text
    if bos:
        assert [ids[0]] == tokenizer.encode("")[:1]
        assert tokenizer.encode(bos + text) == ids, "a rendered chat template brings its own"
        assert tokenizer.count(bos + text) == len(ids)


@pytest.mark.parametrize(
    "kind", [tuple, iter, numpy.array, torch.tensor, lambda ids: torch.tensor([ids]), lambda ids: array.array("i", ids)]
)
def test_it_decodes_ids_of_every_kind(kind: Callable[[list[int]], Any]) -> None:
    assert loaded("llama2").decode(kind(loaded("llama2").encode("the cat"))) == "the cat"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: loaded("gpt2").encode(5), "the text: need str, have int"),
        (lambda: loaded("gpt2").encode(b"text"), "the text: need str, have bytes"),
        (lambda: loaded("gpt2").count(["text"]), "the text: need str, have list"),
        (lambda: loaded("gpt2").count(None), "the text: need str, have NoneType"),
        (lambda: loaded("gpt2").decode("text"), "ids: need token ids, have a text"),
        (lambda: loaded("gpt2").decode(5), "ids: need token ids, have int"),
        (lambda: loaded("gpt2").decode(b"text"), "ids: need token ids, have bytes"),
        (lambda: loaded("gpt2").decode([[1, 2]]), r"ids: need token ids from 0 to 999, have \[1, 2\] at 0"),
        (lambda: loaded("gpt2").decode([0, 1000]), "ids: need token ids from 0 to 999, have 1000 at 1"),
        (lambda: loaded("gpt2").decode([0.5]), "ids: need token ids from 0 to 999, have 0.5 at 0"),
    ],
)
def test_it_refuses_what_is_no_text_or_no_ids(call: Callable[[], object], says: str) -> None:
    with pytest.raises(RequestError, match=f"^{says}"):
        call()
